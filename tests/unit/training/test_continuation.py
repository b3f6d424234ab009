"""What may continue a run and what may not."""

from __future__ import annotations

import logging

import pytest

from reid.training.checkpoint_files import CheckpointRefusedError
from reid.training.continuation import change_of_rate, differences, refuse_other_optimizer, refuse_other_run
from reid.training.optim import OptimizerConfig
from reid.training.snapshot import Position, RunDescription, take_snapshot
from tests.unit.training.small_run import PlannedStream, build_step

RUN = RunDescription(fixed={"optim": {"rate": 0.1}, "epochs": 3}, data_hash="abc")


def test_another_data_set_and_other_settings_are_refused_together() -> None:
    other = RunDescription(fixed={"optim": {"rate": 0.2}, "epochs": 3, "seed": 1}, data_hash="xyz")
    with pytest.raises(CheckpointRefusedError) as caught:
        refuse_other_run("step-00000007", RUN, other)
    text = str(caught.value)
    assert "checkpoint step-00000007 does not continue this run" in text
    assert "another data set: its manifest has the hash abc, this run's xyz" in text
    assert "optim.rate: 0.1 in the checkpoint, 0.2 now" in text
    assert "seed: absent in the checkpoint, 1 now" in text
    assert "epochs" not in text


def test_another_optimizer_is_refused() -> None:
    step = build_step()
    step.train_batch(PlannedStream().batch(0, 0))
    saved = take_snapshot(step, Position(step=1), RUN).optimizer
    refuse_other_optimizer("step-00000001", saved, build_step().optimizer)
    sgd = build_step(optimizer=OptimizerConfig(name="sgd", learning_rate=0.1)).optimizer
    with pytest.raises(CheckpointRefusedError, match=r"another optimizer: Adam \(torch\), here SGD \(torch\)"):
        refuse_other_optimizer("step-00000001", saved, sgd)


def test_the_own_run_is_accepted_and_other_settings_on_request(caplog: pytest.LogCaptureFixture) -> None:
    refuse_other_run("step-00000001", RUN, RUN)
    other = RunDescription(fixed={"optim": {"rate": 0.2}, "epochs": 3}, data_hash="abc")
    with caplog.at_level(logging.WARNING):
        refuse_other_run("step-00000001", RUN, other, resume_anyway=True)
    assert "optim.rate: 0.1 in the checkpoint, 0.2 now" in caplog.text
    other_data = RunDescription(fixed=other.fixed, data_hash="no")
    with pytest.raises(CheckpointRefusedError, match="another data set"):
        refuse_other_run("step-00000001", RUN, other_data, resume_anyway=True)


def test_an_optional_part_that_the_checkpoint_does_not_know_and_nobody_uses_is_no_difference() -> None:
    assert differences({"rate": 1, "old": None}, {"rate": 1, "warp": None}) == []
    assert differences({"rate": 1}, {"rate": 1, "warp": {"degrees": 3}}) == [
        "warp.degrees: absent in the checkpoint, 3 now"
    ]


def _configuration(epochs: int, **schedule: object) -> dict[str, object]:
    training = {"loop": {"epochs": epochs}, "optimizer": {"learning_rate": 0.1}, "schedule": schedule}
    return {"training": training}


def test_another_length_is_told_where_it_changes_the_rate() -> None:
    cosine = {"shape": "cosine", "warmup_epochs": 0, "floor": 0}
    told = change_of_rate(_configuration(10, **cosine), _configuration(20, **cosine), 10)
    assert "training.loop.epochs was 10 and is 20: the learning rate goes on at 5.00e-02" in told
    assert "would have been 0.00e+00" in told
    assert change_of_rate(_configuration(10, **cosine), _configuration(10, **cosine), 5) == ""
    assert change_of_rate(_configuration(10), _configuration(20), 10) == ""  # milestones stand where they stood


def test_tuples_and_lists_are_no_difference() -> None:
    assert differences({"betas": [0.9, 0.999]}, {"betas": (0.9, 0.999)}) == []
    assert differences({"a": {}}, {"a": {"b": 1}}) == [
        "a: {} in the checkpoint, absent now",
        "a.b: absent in the checkpoint, 1 now",
    ]
