from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reid.contracts import Batch, EpochResult, IntervalResult, LossTerms
from reid.storage import list_names, open_location, read_bytes
from reid.training.checkpoint import CheckpointConfig, CheckpointFailedError, CheckpointStore
from reid.training.loop import LoopConfig, fit
from reid.training.schedule import ScheduleConfig
from reid.training.step import NonFiniteLossError, StepConfig
from reid.training.watchdog import stacks_folder
from reid.training.workers import Wish
from tests.s3_server import s3_server
from tests.unit.training.small_run import PlannedStream, build_step, identity_loss

SCHEDULE = ScheduleConfig(warmup_epochs=1, milestone_every_epochs=1, floor=None)


def _config(**changes: Any) -> LoopConfig:
    return LoopConfig(**{"epochs": 2, "log_every_steps": 2, "hang_after_seconds": None, **changes})


def _results(stream: PlannedStream, config: LoopConfig, **more: Any) -> list[IntervalResult | EpochResult]:
    return list(fit(build_step(dropout=0.0), stream, config=config, schedule=SCHEDULE, **more))


def test_rows_and_epoch_ends_come_in_order() -> None:
    results = _results(PlannedStream(steps=5), _config())
    kinds = [(type(result).__name__, result.epoch, result.step) for result in results]
    one_epoch = [("IntervalResult", 2), ("IntervalResult", 4), ("IntervalResult", 5), ("EpochResult", 5)]
    second = [("IntervalResult", 6), ("IntervalResult", 8), ("IntervalResult", 10), ("EpochResult", 10)]
    assert kinds == [(kind, 0, step) for kind, step in one_epoch] + [(kind, 1, step) for kind, step in second]
    ends = [result for result in results if isinstance(result, EpochResult)]
    assert all(end.finished_epoch and end.checkpoint is None for end in ends)


def test_metrics_are_means_since_the_last_result_of_their_kind() -> None:
    every = [r for r in _results(PlannedStream(steps=5), _config(log_every_steps=1)) if isinstance(r, IntervalResult)]
    results = _results(PlannedStream(steps=5), _config())
    pairs = next(r for r in results if isinstance(r, IntervalResult))
    epoch = next(r for r in results if isinstance(r, EpochResult))
    losses = [row.metrics["loss"] for row in every]
    assert pairs.metrics["loss"] == pytest.approx(sum(losses[:2]) / 2)
    assert epoch.metrics["loss"] == pytest.approx(sum(losses[:5]) / 5)
    wanted = {"loss", "loss/identity", "labels", "gradient_norm", "skipped", "learning_rate"}
    assert wanted | {"images_per_second", "data_waiting", "step_seconds"} == pairs.metrics.keys()
    assert pairs.metrics["gradient_norm"] > 0


def test_the_learning_rate_follows_the_schedule() -> None:
    ends = [r for r in _results(PlannedStream(steps=2), _config(epochs=4)) if isinstance(r, EpochResult)]
    assert [end.metrics["learning_rate"] for end in ends] == pytest.approx([1e-3, 1e-2, 1e-3, 1e-4])


class _Clock:
    """A clock that goes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.seconds)


class _SlowStream(PlannedStream):
    """Needs 3 seconds a batch and gives the step 1 second."""

    def __init__(self, steps: int, clock: _Clock) -> None:
        super().__init__(steps=steps)
        self._clock = clock

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for batch in super().batches(epoch, start_step):
            self._clock.seconds += 3
            yield batch


class _SlowModel(nn.Module):
    """The step's model, which needs 1 second."""

    def __init__(self, model: nn.Module, clock: _Clock) -> None:
        super().__init__()
        self.model, self._clock = model, clock

    def forward(self, *arguments: Any) -> Any:
        self._clock.seconds += 1
        return self.model(*arguments)


def test_waiting_for_data_is_measured_apart_from_the_consumers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    step = build_step(dropout=0.0)
    step.model = _SlowModel(step.model, clock)
    config = _config(epochs=1, log_every_steps=2)
    for result in fit(step, _SlowStream(4, clock), config=config, schedule=SCHEDULE):
        assert result.metrics["step_seconds"] == pytest.approx(4)
        assert result.metrics["data_waiting"] == pytest.approx(0.75)
        assert result.metrics["images_per_second"] == pytest.approx(8 / 4)
        clock.seconds += 50


def test_checkpoints_come_where_they_were_asked_for(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path), CheckpointConfig(keep_last=99))
    config = _config(epochs=5, checkpoint_every_epochs=2, checkpoint_every_steps=7)
    ends = [r for r in _results(PlannedStream(steps=4), config, store=store) if isinstance(r, EpochResult)]
    assert [(end.step, end.finished_epoch, end.checkpoint) for end in ends] == [
        (4, True, None),
        (7, False, "step-00000007"),
        (8, True, "step-00000008"),
        (12, True, None),
        (14, False, "step-00000014"),
        (16, True, "step-00000016"),
        (20, True, "step-00000020"),
    ]
    assert store.names() == [end.checkpoint for end in ends if end.checkpoint]
    assert store.load("step-00000007").position.step_in_epoch == 3
    assert store.load("step-00000008").position.epoch == 2
    assert ends[1].metrics["checkpoint_seconds"] > 0


def test_checkpoints_wait_for_the_end_of_an_accumulated_group(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path), CheckpointConfig(keep_last=99))
    step = build_step(StepConfig(precision="float32", accumulate_batches=3))
    config = _config(checkpoint_every_steps=4)
    results = list(fit(step, PlannedStream(steps=8), config=config, schedule=SCHEDULE, store=store))
    commits = [r.step for r in results if isinstance(r, EpochResult)]
    assert commits == [6, 8, 14, 16]  # groups end at 3, 6, 8 of each epoch; the last one is smaller
    updates = step.optimizer.state[step.parameters[0]]["step"]
    assert int(updates) == 6


def test_a_wish_to_stop_saves_and_ends_within_the_step(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path))
    asked = iter([Wish.NOTHING, Wish.NOTHING, Wish.STOP])
    results = _results(PlannedStream(steps=9), _config(), store=store, wish=lambda: next(asked))
    last = results[-1]
    assert isinstance(last, EpochResult)
    assert (last.step, last.finished_epoch, last.checkpoint) == (3, False, "step-00000003")


def test_a_wish_to_save_saves_once_and_training_goes_on(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path), CheckpointConfig(keep_last=99))
    asked = iter([Wish.NOTHING, Wish.SAVE] + [Wish.NOTHING] * 20)
    results = _results(PlannedStream(steps=4), _config(epochs=1), store=store, wish=lambda: next(asked))
    commits = [(r.step, r.finished_epoch) for r in results if isinstance(r, EpochResult)]
    assert commits == [(2, False), (4, True)]


class _ShortStream(PlannedStream):
    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for index, batch in enumerate(super().batches(epoch, start_step)):
            if index == 3:
                return
            yield batch


def test_a_stream_that_ends_early_is_an_error() -> None:
    with pytest.raises(ValueError, match="the stream of epoch 0 ended after 3 of 5 batches"):
        _results(_ShortStream(steps=5), _config())


def test_an_aborted_run_leaves_a_report_that_any_reader_understands(tmp_path: Path) -> None:
    def hopeless(logits: Tensor, labels: Tensor, epoch: int) -> LossTerms:
        loss = identity_loss(logits, labels).total * float("nan")
        return LossTerms(total=loss, parts={"identity": loss.detach()})

    step = build_step(StepConfig(precision="float32", max_consecutive_nonfinite=3), objective=hopeless)
    run = fit(
        step,
        PlannedStream(),
        config=_config(),
        schedule=SCHEDULE,
        folder=open_location(tmp_path),
        names=lambda samples: [f"image-{sample}" for sample in samples],
    )
    with pytest.raises(NonFiniteLossError, match="3 updates in a row"):
        list(run)
    assert os.listdir(tmp_path) == ["nonfinite-step-00000002-rank-0.json"]

    def no_constants(text: str) -> None:
        raise AssertionError(text)

    report = json.loads((tmp_path / "nonfinite-step-00000002-rank-0.json").read_text(), parse_constant=no_constants)
    assert report["batches"][0]["metrics"]["loss/identity"] == "NaN"
    samples = PlannedStream().batch(0, 2).samples.tolist()
    assert report["batches"][-1]["samples"] == samples
    assert report["batches"][-1]["keys"] == [f"image-{sample}" for sample in samples]


def test_a_storage_that_keeps_refusing_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = CheckpointStore(open_location(tmp_path / "file" / "checkpoints"))
    with pytest.raises(CheckpointFailedError, match="3 failures in a row"):
        _results(PlannedStream(steps=2), _config(epochs=9), store=store)


def test_a_model_that_the_consumer_put_into_evaluation_mode_trains_on() -> None:
    step = build_step()
    seen = []
    for result in fit(step, PlannedStream(steps=3), config=_config(epochs=3), schedule=SCHEDULE):
        if isinstance(result, EpochResult):
            seen.append(step.model.training)
            step.model.eval()
    assert seen == [True, True, True]


def test_a_hanging_step_writes_its_stack_and_ends_the_process(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from reid.training.watchdog import StepWatchdog

def stuck_collective_operation():
    time.sleep(60)

with StepWatchdog(Path(sys.argv[1]), "rank-0", minimum_seconds=0.3) as watchdog:
    for _ in range(3):
        watchdog.beat()
        time.sleep(0.01)
    watchdog.pause()
    time.sleep(0.5)  # not a hang: nobody is stepping
    watchdog.beat()
    stuck_collective_operation()
"""
    began = time.monotonic()
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, timeout=50, check=False)
    assert done.returncode == 1
    assert time.monotonic() - began < 45
    (stacks,) = tmp_path.glob("stacks-rank-0-*.txt")
    assert "stuck_collective_operation" in stacks.read_text()


def test_stacks_of_a_run_on_an_object_store_come_there_with_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    with s3_server("runs"):
        run = open_location("s3://runs/stuck")
        folder = stacks_folder(run)
        assert folder is not None
        assert folder.parent == tmp_path / "temporary"
        folder.mkdir(parents=True)
        (folder / "stacks-rank-0-1.txt").write_text("where it hung")
        (folder / "stacks-rank-1-2.txt").touch()  # of a worker that runs
        assert stacks_folder(run) == folder
        assert list_names(run) == ["stacks-rank-0-1.txt"]
        assert read_bytes(run.child("stacks-rank-0-1.txt")) == b"where it hung"
        assert stacks_folder(open_location("s3://runs/other")) != folder
    assert [path.name for path in folder.iterdir()] == ["stacks-rank-1-2.txt"]
    assert stacks_folder(open_location(tmp_path)) == tmp_path


def test_a_healthy_run_leaves_no_stacks(tmp_path: Path) -> None:
    config = LoopConfig(epochs=1, log_every_steps=2, hang_after_seconds=60)
    list(fit(build_step(), PlannedStream(), config=config, schedule=SCHEDULE, folder=open_location(tmp_path)))
    assert os.listdir(tmp_path) == []


def test_interrupting_the_iteration_closes_the_stream() -> None:
    closed = []

    class Stream(PlannedStream):
        def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
            try:
                yield from super().batches(epoch, start_step)
            finally:
                closed.append(epoch)

    iterator = fit(build_step(), Stream(), config=_config(), schedule=SCHEDULE)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert closed == [0]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.usefixtures("low_precision_hardware")
def test_out_of_memory_names_settings_that_lower_it(precision: Any) -> None:
    def too_large(logits: Tensor, labels: Tensor, epoch: int) -> LossTerms:
        raise torch.OutOfMemoryError("CUDA out of memory")

    step = build_step(StepConfig(precision=precision), objective=too_large)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        next(iter(fit(step, PlannedStream(), config=_config(), schedule=SCHEDULE)))
    (note,) = caught.value.__notes__
    assert f"8 images of 12x12 per worker in {precision}, peak 0.0 GiB" in note
    for key in ("cluster.num_workers", "data.plan.identities_per_batch", "training.step.accumulate_batches"):
        assert key in note
    assert "data.transform.height" in note
    assert ("training.step.precision=auto" in note) == (precision == "float32")
