"""A run that is saved, thrown away and continued is the undisturbed run, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reid.contracts import EpochResult, IntervalResult
from reid.storage import open_location
from reid.training.checkpoint import CheckpointStore
from reid.training.loop import LoopConfig, fit
from reid.training.optim import OptimizerConfig
from reid.training.randomness import seed_everything
from reid.training.schedule import ScheduleConfig
from reid.training.snapshot import Position, RunDescription, restore_snapshot, take_snapshot
from reid.training.step import StepConfig
from reid.training.workers import Wish
from tests.unit.training.small_run import PlannedStream, build_step, differing, everything

SCHEDULE = ScheduleConfig(warmup_epochs=1.5, milestone_every_epochs=1, per_step=True)
KINDS: list[tuple[StepConfig, OptimizerConfig]] = [
    (StepConfig(precision="float32", ema_decay=0.99, clip_gradient_norm=0.5), OptimizerConfig(learning_rate=0.01)),
    (StepConfig(precision="bf16"), OptimizerConfig(name="adamw", learning_rate=0.01)),
    (StepConfig(precision="fp16", ema_decay=0.9), OptimizerConfig(name="sgd", learning_rate=0.05)),
    (StepConfig(precision="float32", channels_last=False, accumulate_batches=2), OptimizerConfig(learning_rate=0.01)),
]


def _loop(**changes: Any) -> LoopConfig:
    return LoopConfig(epochs=2, log_every_steps=1, hang_after_seconds=None, **changes)


@pytest.mark.parametrize(
    ("config", "optimizer"), KINDS, ids=["adam-ema-clip", "adamw-bf16", "sgd-fp16-ema", "accumulate"]
)
@pytest.mark.usefixtures("low_precision_hardware")
def test_ten_steps_equal_five_steps_a_checkpoint_and_five_more(
    tmp_path: Path, config: StepConfig, optimizer: OptimizerConfig
) -> None:
    def losses(results: list[Any]) -> list[tuple[int, float, float]]:
        rows = [result for result in results if isinstance(result, IntervalResult)]
        return [(row.step, row.metrics["loss"], row.metrics["learning_rate"]) for row in rows]

    seed_everything(7)
    step = build_step(config, optimizer)
    stream = PlannedStream(steps=6)
    expected_rows = losses(list(fit(step, stream, config=_loop(), schedule=SCHEDULE)))
    expected = everything(step)
    assert expected["model/classifier.weight"].abs().sum() > 0

    store = CheckpointStore(open_location(tmp_path))
    seed_everything(7)
    step = build_step(config, optimizer)
    actual_rows: list[Any] = []
    for result in fit(step, stream, config=_loop(checkpoint_every_steps=4), schedule=SCHEDULE, store=store):
        actual_rows.append(result)
        if isinstance(result, EpochResult) and result.step == 4:
            assert result.checkpoint == "step-00000004"
            break

    seed_everything(99)  # nothing of the first process is left
    resumed = build_step(config, optimizer, seed=99)
    state = store.load(store.newest() or "")
    restore_snapshot(resumed, state)
    actual_rows += fit(resumed, stream, config=_loop(), schedule=SCHEDULE, start=state.position)

    assert losses(actual_rows) == expected_rows
    assert differing(expected, everything(resumed)) == []


def test_resume_after_every_step_consumes_exactly_the_remaining_batches(tmp_path: Path) -> None:
    undisturbed = PlannedStream(steps=4)
    for _ in fit(build_step(), undisturbed, config=_loop(), schedule=SCHEDULE):
        pass
    assert len(undisturbed.consumed) == 8

    for stop_after in range(1, 8):
        store = CheckpointStore(open_location(tmp_path / str(stop_after)))
        first = PlannedStream(steps=4)
        taken = 0

        def enough(limit: int = stop_after) -> Wish:
            nonlocal taken
            taken += 1
            return Wish.STOP if taken == limit else Wish.NOTHING

        *_, last = fit(build_step(), first, config=_loop(), schedule=SCHEDULE, store=store, wish=enough)
        assert isinstance(last, EpochResult)
        assert last.step == stop_after
        state = store.load(store.newest() or "")
        second = PlannedStream(steps=4)
        step = build_step(seed=5)
        restore_snapshot(step, state)
        for _ in fit(step, second, config=_loop(), schedule=SCHEDULE, start=state.position):
            pass
        assert first.consumed[:stop_after] + second.consumed == undisturbed.consumed


def test_moments_take_the_memory_layout_of_channels_last_weights(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path))
    step = build_step()
    for _ in fit(step, PlannedStream(steps=2), config=_loop(), schedule=SCHEDULE, store=store):
        pass
    resumed = build_step(seed=3)
    restore_snapshot(resumed, store.load(store.newest() or ""))

    weight = next(p for name, p in resumed.bare_model.named_parameters() if name == "first.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert resumed.optimizer.state[weight]["exp_avg"].stride() == weight.stride()


@pytest.mark.usefixtures("low_precision_hardware")
def test_another_precision_or_average_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path))
    step = build_step(StepConfig(precision="fp16", ema_decay=0.9))
    for _ in fit(step, PlannedStream(steps=1), config=_loop(), schedule=SCHEDULE, store=store):
        pass
    state = store.load(store.newest() or "")

    with pytest.raises(ValueError, match=r"fp16 loss scaler, this run uses precision bf16"):
        restore_snapshot(build_step(StepConfig(precision="bf16", ema_decay=0.9)), state)
    with pytest.raises(ValueError, match=r"with a moving average of the weights, this run has ema_decay None"):
        restore_snapshot(build_step(StepConfig(precision="fp16")), state)


@pytest.mark.usefixtures("no_low_precision_hardware")
def test_auto_goes_on_where_the_hardware_asks_for_another_precision(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    step = build_step(StepConfig())
    step.scaler = torch.amp.GradScaler("cpu")
    state = take_snapshot(step, Position(), RunDescription())
    resumed = build_step(StepConfig())
    restore_snapshot(resumed, state)
    assert resumed.scaler is None
    assert "with an fp16 loss scaler, on other hardware: training goes on in float32" in caplog.text


def test_counters_of_the_run_are_in_its_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path))
    counters = {"samples_skipped/image_truncated": 3, "checkpoints_failed": 1}
    results = fit(
        build_step(), PlannedStream(steps=1), config=_loop(), schedule=SCHEDULE, store=store, counters=lambda: counters
    )
    assert [result for result in results if isinstance(result, EpochResult)]
    assert store.load(store.newest() or "").counters == {**counters, "updates_skipped": 0}


def test_another_model_is_refused_with_the_differing_tensors(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path))
    step = build_step()
    for _ in fit(step, PlannedStream(steps=1), config=_loop(), schedule=SCHEDULE, store=store):
        pass
    state = store.load(store.newest() or "")
    other = build_step(norm=False)
    before = everything(other)
    with pytest.raises(ValueError, match=r"norm\.weight: only in the checkpoint"):
        restore_snapshot(other, state)
    assert differing(before, everything(other)) == []
