from __future__ import annotations

import logging
import time

import pytest
import torch

from reid.training.stragglers import ForwardClock, StragglerWatch

STEADY = [0.1, 0.1, 0.1]


def _watch() -> StragglerWatch:
    return StragglerWatch(["node-a", "node-a", "node-b"])


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_worker_is_named_after_fifty_slow_steps_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    watch = _watch()
    watch.look([1.0, 2.0, 8.0], [6.0, 5.0, 10.0], 20)
    watch.look([1.0, 2.0, 8.0], [6.0, 5.0, 10.0], 20)
    assert _said(caplog) == []
    watch.look([1.0, 2.0, 8.0], [6.0, 5.0, 10.0], 20)
    (said,) = _said(caplog)
    assert said.startswith("worker 2 on node-b ")
    assert "takes 0.9 s (0.4 s waiting for data, 0.5 s forward), 2.6 times the median" in said


def test_a_worker_is_named_once_and_again_after_it_had_caught_up(caplog: pytest.LogCaptureFixture) -> None:
    watch = _watch()
    for _ in range(4):
        watch.look(STEADY, [1.0, 3.0, 1.0], 50)
    assert len(_said(caplog)) == 1
    watch.look(STEADY, [1.0, 1.1, 1.0], 50)
    watch.look(STEADY, [1.0, 3.0, 1.0], 50)
    assert len(_said(caplog)) == 2


@pytest.mark.parametrize("slow", [[1.0, 1.9, 1.0], [1.0, 1.0, 1.0]])
def test_workers_of_similar_speed_are_left_alone(slow: list[float], caplog: pytest.LogCaptureFixture) -> None:
    watch = _watch()
    for _ in range(5):
        watch.look(STEADY, slow, 50)
    assert _said(caplog) == []


def test_slow_steps_of_different_workers_do_not_add_up(caplog: pytest.LogCaptureFixture) -> None:
    watch = _watch()
    for turn in range(6):
        watch.look(STEADY, [5.0 if worker == turn % 3 else 1.0 for worker in range(3)], 40)
    assert _said(caplog) == []


def test_of_two_workers_the_slower_one_is_measured_by_the_other(caplog: pytest.LogCaptureFixture) -> None:
    StragglerWatch(["node-a", "node-b"]).look([0.0, 0.0], [10.0, 2.0], 50)
    assert _said(caplog)[0].startswith("worker 0 on node-a ")


def test_one_worker_alone_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    StragglerWatch(["node-a"]).look([9.0], [9.0], 500)
    assert _said(caplog) == []


def test_the_clock_sums_forward_passes_and_begins_anew() -> None:
    clock = ForwardClock(torch.device("cpu"))
    for _ in range(2):
        with clock.running():
            time.sleep(0.01)
        time.sleep(0.05)
    assert 0.02 <= clock.take_seconds() < 0.05
    assert clock.take_seconds() == 0
