"""Two gloo processes take one decision, average what must be averaged, and agree before they start.

Starting a process costs seconds, so one pair of processes does all the work and the tests look at what it brought back.
What one worker does is done in the test's own process.
"""

from __future__ import annotations

import copy
import logging
import socket
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reid.contracts import EpochResult, IntervalResult, LossTerms
from reid.storage import open_location
from reid.training.checkpoint import CheckpointStore
from reid.training.loop import LoopConfig, fit
from reid.training.optim import OptimizerConfig
from reid.training.schedule import ScheduleConfig
from reid.training.snapshot import restore_snapshot
from reid.training.step import NonFiniteLossError, StepConfig
from reid.training.workers import Wish, mean_over_workers, refuse_disagreement, share_text
from tests.processes import run
from tests.unit.training.small_run import PlannedStream, build_step, differing, everything, identity_loss

SCHEDULE = ScheduleConfig(warmup_epochs=0)
SGD = OptimizerConfig(name="sgd", learning_rate=0.05)


def _small_talk(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mean": mean_over_workers(torch.tensor([float(rank), 1.0])).tolist(),
        "texts": [share_text(text if rank == 0 else "nonsense") for text in ("step-00000005", None, "", "ü")],
    }
    refuse_disagreement({"config": "a", "data": "b"})
    try:
        refuse_disagreement({"config": "a", "data": f"b{rank}"})
    except ValueError as error:
        found["refusal"] = str(error)
    return found


class _NanOnRankOne:
    """A loss that is NaN on rank 1 only, at some steps; its gradient does not show it."""

    def __init__(self, rank: int, steps: set[int]) -> None:
        self.rank, self.steps, self.calls = rank, steps, 0

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> LossTerms:
        terms = identity_loss(logits, labels)
        total = terms.total
        if self.rank == 1 and self.calls in self.steps:
            total = total + total.detach() * float("nan")
        self.calls += 1
        return LossTerms(total=total, parts={"identity": terms.total.detach()})


def _with_a_nan(rank: int) -> dict[str, Any]:
    config = StepConfig(precision="float32", max_consecutive_nonfinite=3)
    step = build_step(config, SGD, dropout=0.0, objective=_NanOnRankOne(rank, {1, 4, 5, 6}))
    stream = PlannedStream(steps=8)
    batches = stream.batches(0)
    skipped = [float(step.train_batch(next(batches))["skipped"]) for _ in range(4)]
    state = everything(step)
    aborted_at = None
    for index in range(4, 8):
        try:
            step.train_batch(next(batches))
        except NonFiniteLossError:
            aborted_at = index
            break
    calm = build_step(config, SGD, dropout=0.0)
    for index, batch in enumerate(stream.batches(0)):
        if index in {0, 2, 3}:
            calm.train_batch(batch)
    return {"skipped": skipped, "state": state, "calm": everything(calm), "aborted_at": aborted_at}


def _fit_whole(rank: int, folder: str, stop_on_rank: int | None) -> dict[str, Any]:
    """Train, from the newest checkpoint where there is one.

    Rank `stop_on_rank` wishes to save at step 1 and to stop at step 3.
    """
    store = CheckpointStore(open_location(folder))
    step = build_step(optimizer=SGD, norm=False, dropout=0.0)
    start = None
    newest = share_text(store.newest() if rank == 0 else None)
    if newest is not None:
        state = store.load(newest)
        restore_snapshot(step, state)
        start = state.position
    asked = 0

    def wish() -> Wish:
        nonlocal asked
        asked += 1
        return {1: Wish.SAVE, 3: Wish.STOP}.get(asked, Wish.NOTHING) if rank == stop_on_rank else Wish.NOTHING

    stream = PlannedStream(steps=4, batch_size=8)
    config = LoopConfig(epochs=2, log_every_steps=1, hang_after_seconds=None)
    results = list(fit(step, stream, config=config, schedule=SCHEDULE, store=store, start=start, wish=wish))
    rows = [(r.step, r.metrics["loss"], r.metrics["skipped"]) for r in results if isinstance(r, IntervalResult)]
    commits = [(r.step, r.checkpoint) for r in results if isinstance(r, EpochResult)]
    return {"rows": rows, "commits": commits, "state": everything(step), "consumed": stream.consumed}


def _statistics() -> dict[str, Tensor]:
    step = build_step(dropout=0.0)
    step.train_batch(next(PlannedStream(steps=1).batches(0)))
    return everything(step)


def _two_forward_passes() -> dict[str, Any]:
    """Statistics after this rank's images were shown twice, and those of the same network without its wrapper."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = build_step(dropout=0.0)
    plain = copy.deepcopy(step.bare_model)
    images = next(PlannedStream(steps=1).batches(0)).images
    for model in (step.model, plain):
        model.train()
        for _ in range(2):
            model(images)
    return {"actual": step.bare_model.state_dict(), "expected": plain.state_dict()}


def _with_a_straggler(rank: int) -> dict[str, Any]:
    """What is said and measured when rank 1 computes slowly for 60 steps."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    step = build_step(optimizer=SGD, dropout=0.0)
    if rank == 1:
        step.model.register_forward_pre_hook(lambda *_: time.sleep(0.03))
    config = LoopConfig(epochs=1, log_every_steps=20, hang_after_seconds=None)
    listener = Listener(logging.WARNING)
    logging.getLogger("reid").addHandler(listener)
    try:
        results = list(fit(step, PlannedStream(steps=60), config=config, schedule=SCHEDULE))
    finally:
        logging.getLogger("reid").removeHandler(listener)
    rows = [result for result in results if isinstance(result, IntervalResult)]
    return {"said": said, "slowest": [row.metrics["slowest_worker"] for row in rows]}


def _work(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    return {
        "talk": _small_talk(rank),
        "nan": _with_a_nan(rank),
        "whole": _fit_whole(rank, f"{folder}/whole", None),
        "stopped": _fit_whole(rank, f"{folder}/stopped", 1),
        "statistics": _statistics(),
        "forward": _two_forward_passes(),
        "straggler": _with_a_straggler(rank),
    }


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the runs, and what both ranks brought back."""
    folder = tmp_path_factory.mktemp("workers")
    return folder, run(_work, 2, str(folder), timeout_seconds=240)


Found = tuple[Path, list[dict[str, Any]]]


def test_workers_share_texts_and_averages_and_refuse_to_disagree(workers: Found) -> None:
    for rank, found in enumerate(workers[1]):
        talk = found["talk"]
        assert talk["mean"] == [0.5, 1.0]
        assert talk["texts"] == ["step-00000005", None, "", "ü"]
        assert "data: ranks [1] differ from rank 0" in talk["refusal"]
        assert f"rank {rank} has 'b{rank}'" in talk["refusal"]
        assert "config" not in talk["refusal"]


def test_a_slow_worker_is_named_once_with_its_machine(workers: Found) -> None:
    first, second = (found["straggler"] for found in workers[1])
    assert (len(first["said"]), len(second["said"])) == (1, 0)
    assert f"worker 1 on {socket.gethostname()} holds up the others" in first["said"][0]
    assert first["slowest"] == second["slowest"]
    assert min(first["slowest"]) > 2


def test_a_nan_on_one_worker_is_skipped_by_all_and_aborts_all_at_the_same_step(workers: Found) -> None:
    first, second = (found["nan"] for found in workers[1])
    for found in (first, second):
        assert found["skipped"] == [0, 1, 0, 0]
        assert found["aborted_at"] == 6
        assert [name for name in differing(found["calm"], found["state"]) if "num_batches" not in name] == []
    assert differing(first["state"], second["state"]) == []


def test_two_workers_train_as_one_does(workers: Found, tmp_path: Path) -> None:
    alone = _fit_whole(0, str(tmp_path), None)
    first, second = (found["whole"] for found in workers[1])
    assert first["rows"] == second["rows"]
    assert first["commits"] == second["commits"] == [(4, "step-00000004"), (8, "step-00000008")]
    for (_, expected, _), (_, actual, _) in zip(alone["rows"], first["rows"], strict=True):
        assert abs(expected - actual) < 1e-5
    for name, expected in alone["state"].items():
        torch.testing.assert_close(first["state"][name], expected, rtol=1e-4, atol=1e-6)


def test_one_workers_wish_stops_all_at_one_step_and_another_number_of_workers_goes_on(
    workers: Found, tmp_path: Path
) -> None:
    folder, ranks = workers
    for found in ranks:
        # Wished at steps 1 and 3, decided one later.
        assert found["stopped"]["commits"] == [(2, "step-00000002"), (4, "step-00000004")]
    alone = _fit_whole(0, str(tmp_path), None)
    resumed = _fit_whole(0, str(folder / "stopped"), None)
    assert ranks[0]["stopped"]["consumed"][:4] + resumed["consumed"] == alone["consumed"]
    for name, expected in alone["state"].items():
        torch.testing.assert_close(resumed["state"][name], expected, rtol=1e-4, atol=1e-6)


def test_a_forward_pass_leaves_each_worker_its_own_statistics(workers: Found) -> None:
    first, second = (found["forward"] for found in workers[1])
    for found in (first, second):
        assert differing(found["expected"], found["actual"]) == []
    assert "norm.running_mean" in differing(first["actual"], second["actual"])


def test_batch_norm_statistics_are_the_average_over_the_workers(workers: Found) -> None:
    first, second = (found["statistics"] for found in workers[1])
    assert differing(first, second) == []
    whole = _statistics()
    mean = "model/norm.running_mean"  # the mean of two halves' means is the mean of the whole
    assert whole[mean].abs().max() > 0
    torch.testing.assert_close(first[mean], whole[mean], rtol=1e-5, atol=1e-7)
