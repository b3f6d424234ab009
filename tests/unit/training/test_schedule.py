from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.training.schedule import ScheduleConfig, learning_rate_at, place_in_run

PAPER = ScheduleConfig()
BASE = 3.5e-4


def test_first_epoch_is_a_tenth_and_the_tenth_epoch_reaches_the_full_rate() -> None:
    rates = [learning_rate_at(PAPER, BASE, epoch, 240) for epoch in range(11)]
    assert rates[0] == pytest.approx(3.5e-5)
    assert rates[10] == BASE
    rises = [after - before for before, after in pairwise(rates)]
    assert rises == pytest.approx([3.15e-5] * 10)


def test_milestones_are_counted_from_the_end_of_the_warm_up() -> None:
    for epoch, expected in [(39.99, BASE), (40, 3.5e-5), (69.99, 3.5e-5), (70, 3.5e-6), (99, 3.5e-6), (100, 3.5e-7)]:
        assert learning_rate_at(PAPER, BASE, epoch, 240) == pytest.approx(expected), epoch


def test_the_floor_holds_and_none_is_the_literal_form() -> None:
    assert learning_rate_at(PAPER, BASE, 239, 240) == 3.5e-7
    literal = ScheduleConfig(floor=None)
    assert learning_rate_at(literal, BASE, 239, 240) == pytest.approx(BASE * 1e-7)


def test_a_floor_above_the_rate_does_not_raise_it() -> None:
    assert learning_rate_at(ScheduleConfig(warmup_epochs=0, floor=1.0), 0.1, 500, 600) == 0.1


def test_a_run_shorter_than_the_warm_up_stays_inside_it() -> None:
    rates = [learning_rate_at(PAPER, BASE, epoch, 7) for epoch in range(7)]
    assert rates == sorted(rates)
    assert rates[-1] < BASE


def test_named_milestones_are_epochs_of_the_run() -> None:
    config = ScheduleConfig(milestones=(40, 70, 100))
    rates = [learning_rate_at(config, 1.5e-4, epoch, 120) for epoch in (39, 40, 70, 100)]
    assert rates == pytest.approx([1.5e-4, 1.5e-5, 1.5e-6, 3.5e-7])


def test_cosine_falls_from_the_full_rate_to_the_floor() -> None:
    config = ScheduleConfig(shape="cosine", warmup_epochs=2, floor=0.01)
    rates = [learning_rate_at(config, 1.0, epoch, 10) for epoch in (2, 6, 10)]
    assert rates == pytest.approx([1.0, 0.505, 0.01])


def test_the_rate_moves_per_epoch_or_per_step() -> None:
    assert place_in_run(PAPER, 3, 50, 100) == 3.0
    assert place_in_run(ScheduleConfig(per_step=True), 3, 50, 100) == 3.5


def test_options_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(ValueError, match="'cosine' has no milestones: remove milestone_every_epochs"):
        ScheduleConfig(shape="cosine", milestone_every_epochs=20)
    with pytest.raises(ValueError, match=r"rise strictly, got \(40\.0, 40\.0\)"):
        ScheduleConfig(milestones=(40, 40))


@given(
    epoch=st.floats(0, 300),
    total=st.integers(1, 300),
    warmup=st.floats(0, 20),
    shape=st.sampled_from(["milestones", "cosine"]),
)
def test_the_rate_is_never_negative_nor_above_the_full_rate(
    epoch: float, total: int, warmup: float, shape: str
) -> None:
    config = ScheduleConfig.model_validate({"shape": shape, "warmup_epochs": warmup})
    assert 0 <= learning_rate_at(config, BASE, epoch, total) <= BASE * (1 + 1e-12)
