"""The training loop: a generator that yields rows of the log, epoch ends and committed checkpoints."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from pydantic import Field
from torch import Tensor

from reid.contracts import Batch, EpochResult, IntervalResult, Settings
from reid.storage import Location, write_bytes_atomic
from reid.training.checkpoint import CheckpointFailedError, CheckpointStore
from reid.training.checkpoint_files import json_to_bytes
from reid.training.meter import Meter, Totals
from reid.training.schedule import ScheduleConfig, learning_rate_at, place_in_run
from reid.training.snapshot import Position, RunDescription, take_snapshot
from reid.training.step import NonFiniteLossError, TrainingStep
from reid.training.stragglers import StragglerWatch
from reid.training.watchdog import StepWatchdog, stacks_folder
from reid.training.workers import Wish, WishPoll, node_names, rank, share_text

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LAST_SAVES: Final = 2.0


class LoopConfig(Settings):
    """How long to train, and when to log and save."""

    epochs: int = Field(default=240, ge=1)
    """Length of the run (METHOD 1.5: 240 on VeRi, 120 on VehicleID and VERI-Wild)."""
    log_every_steps: int = Field(default=50, ge=1)
    """Batches between two rows of the log; the only time the device is waited for."""
    checkpoint_every_epochs: int = Field(default=1, ge=1)
    """A checkpoint at every so many epoch ends, and always at the last."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Also inside epochs, after every so many batches of the run; for epochs that take hours."""
    hang_after_seconds: float | None = Field(default=300.0, gt=0)
    """A step that takes longer than this, and than 20 usual ones, is a hang: the stacks of all threads go to the run
    folder (on an object store: when a worker starts on that machine again; until then they are in its temporary folder)
    and the process ends. None: never."""


class BatchStream(Protocol):
    """Where batches come from: a pure function of epoch and position."""

    def steps_in_epoch(self, epoch: int) -> int:
        """Number of batches, the same on all workers."""
        ...

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This worker's batches of an epoch from a position on."""
        ...


def no_wish() -> Wish:
    """The wish of a run that is left alone."""
    return Wish.NOTHING


def no_names(samples: Sequence[int]) -> list[str]:
    """The names of samples that nobody has names for: their numbers."""
    return [str(sample) for sample in samples]


def no_counters() -> dict[str, int]:
    """The counters of a run that counts nothing but what the step does."""
    return {}


def fit(
    step: TrainingStep,
    stream: BatchStream,
    *,
    config: LoopConfig,
    schedule: ScheduleConfig,
    run: RunDescription | None = None,
    store: CheckpointStore | None = None,
    start: Position | None = None,
    wish: Callable[[], Wish] = no_wish,
    folder: Location | None = None,
    counters: Callable[[], Mapping[str, int]] = no_counters,
    names: Callable[[Sequence[int]], Sequence[str]] = no_names,
) -> Iterator[IntervalResult | EpochResult]:
    """Train, one yield at a time; all workers must take the same number of results.

    A result with a `checkpoint` is given out only after the checkpoint is safely under its final name, on every worker.
    Stopping the iteration early is fine on a single worker.

    Args:
        step: What learns; to resume, after `restore_snapshot`.
        stream: Batches by epoch and position.
        config: Length, logging, saving.
        schedule: The learning rate.
        run: What checkpoints say about the run.
        store: Where checkpoints go; None: nowhere. Only rank 0 writes.
        start: The position to continue at; None: the beginning.
        wish: Asked once per step on every worker. When one wants to save or stop, all finish their step, save and
            yield an `EpochResult`, and end when one wants to stop; with several workers one step later.
        folder: The run folder, for the report of an aborted run and the stacks of a hanging one.
        counters: Totals since the beginning of the run that checkpoints keep; asked at each save, on every worker.
        names: What people know samples by, for the report of an aborted run.

    Yields:
        `IntervalResult` every `log_every_steps`; `EpochResult` at each epoch end and each checkpoint inside an epoch.

    Raises:
        NonFiniteLossError: On all workers, after too many non-finite updates in a row; the report is in `folder`.
        CheckpointFailedError: On all workers, when saving failed too often in a row.
        ValueError: When the stream ends before the epoch does.
    """
    watchdog = StepWatchdog(
        stacks_folder(folder),
        f"rank-{rank()}",
        minimum_seconds=config.hang_after_seconds or 0.0,
        enabled=config.hang_after_seconds is not None,
    )
    position = start or Position()
    with closing(WishPoll(wish)) as poll, watchdog:
        stragglers = StragglerWatch(node_names())
        run = run or RunDescription()
        parts = _Parts(step, stream, config, schedule, run, store, folder, poll, watchdog, stragglers, counters, names)
        stopped = False
        while position.epoch < config.epochs and not stopped:
            if position.step_in_epoch < stream.steps_in_epoch(position.epoch):
                position, stopped = yield from _train_epoch(parts, position)
            position = _after(position, stream)


@dataclass(frozen=True, slots=True)
class _Parts:
    step: TrainingStep
    stream: BatchStream
    config: LoopConfig
    schedule: ScheduleConfig
    run: RunDescription
    store: CheckpointStore | None
    folder: Location | None
    poll: WishPoll
    watchdog: StepWatchdog
    stragglers: StragglerWatch
    counters: Callable[[], Mapping[str, int]]
    names: Callable[[Sequence[int]], Sequence[str]]


def _after(position: Position, stream: BatchStream) -> Position:
    """The same position, at the beginning of the next epoch when this one is used up."""
    if position.step_in_epoch < stream.steps_in_epoch(position.epoch):
        return position
    return Position(epoch=position.epoch + 1, step=position.step)


def _train_epoch(
    parts: _Parts, position: Position
) -> Generator[IntervalResult | EpochResult, None, tuple[Position, bool]]:
    """Train from a position to the end of its epoch, or to where all workers stop."""
    config, epoch = parts.config, position.epoch
    steps = parts.stream.steps_in_epoch(epoch)
    accumulate = parts.step.config.accumulate_batches
    saves_epoch = (epoch + 1) % config.checkpoint_every_epochs == 0 or epoch + 1 == config.epochs
    batches = parts.stream.batches(epoch, position.step_in_epoch)
    meter, row, since_result = Meter(), Totals(), Totals()
    due = stopping = False
    every_steps = config.checkpoint_every_steps
    parts.step.model.train()
    try:
        while position.step_in_epoch < steps:
            parts.watchdog.beat()
            group_start = position.step_in_epoch - position.step_in_epoch % accumulate
            group_size = min(accumulate, steps - group_start)
            closes_group = position.step_in_epoch + 1 == group_start + group_size
            batch, waiting_seconds = _next(batches, position, steps)
            learning_rate = _set_learning_rates(parts, position, steps)
            metrics = _train_one(parts, batch, position, group_size, closes_group)
            position = Position(epoch=epoch, step_in_epoch=position.step_in_epoch + 1, step=position.step + 1)
            meter.add(metrics, images=len(batch.labels), waiting_seconds=waiting_seconds)

            wish = Wish.STOP if stopping else parts.poll.poll()
            stopping = wish is Wish.STOP
            finished = position.step_in_epoch == steps
            due = due or wish is Wish.SAVE or (every_steps is not None and position.step % every_steps == 0)
            logs = finished or position.step % config.log_every_steps == 0
            saves = closes_group and (stopping or due or (finished and saves_epoch))
            if logs or saves:
                totals = meter.drain(parts.step.forward_clock.take_seconds())
                if rank() == 0:
                    parts.stragglers.look(totals.waiting_seconds, totals.forward_seconds, totals.steps)
                row.add(totals)
                since_result.add(totals)
                parts.watchdog.pause()
            if logs:
                yield IntervalResult(
                    epoch=epoch,
                    step=position.step,
                    step_in_epoch=position.step_in_epoch,
                    steps_in_epoch=steps,
                    metrics={**row.metrics(), "learning_rate": learning_rate},
                )
                row = Totals()
            if saves or finished:
                began = time.perf_counter()
                name = _commit(parts, position) if saves else None
                while saves and name is None and parts.store is not None and epoch + 1 == config.epochs and finished:
                    # There is no later chance for the end of the run: save again until it is there or given up.
                    time.sleep(_SECONDS_BETWEEN_LAST_SAVES)
                    name = _commit(parts, position)
                result = {**since_result.metrics(), "learning_rate": learning_rate}
                if name is not None:
                    result["checkpoint_seconds"] = time.perf_counter() - began
                yield EpochResult(
                    epoch=epoch, step=position.step, finished_epoch=finished, metrics=result, checkpoint=name
                )
                since_result, due = Totals(), False
                parts.step.model.train()  # the consumer may have evaluated
            if logs or saves:
                meter.restart_clock()
            if stopping and closes_group:
                return position, True
        return position, False
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _next(batches: Iterator[Batch], position: Position, steps: int) -> tuple[Batch, float]:
    began = time.perf_counter()
    batch = next(batches, None)
    if batch is None:
        raise ValueError(
            f"the stream of epoch {position.epoch} ended after {position.step_in_epoch} of {steps} batches: every "
            "worker must get as many as steps_in_epoch promises"
        )
    return batch, time.perf_counter() - began


def _set_learning_rates(parts: _Parts, position: Position, steps: int) -> float:
    """Set each group's rate for the coming step; returns the first group's."""
    place = place_in_run(parts.schedule, position.epoch, position.step_in_epoch, steps)
    groups = parts.step.optimizer.param_groups
    for group in groups:
        group["lr"] = learning_rate_at(parts.schedule, group["initial_lr"], place, parts.config.epochs)
    return float(groups[0]["lr"])


def _train_one(
    parts: _Parts, batch: Batch, position: Position, group_size: int, closes_group: bool
) -> dict[str, Tensor]:
    try:
        return parts.step.train_batch(batch, epoch=position.epoch, group_size=group_size, closes_group=closes_group)
    except NonFiniteLossError as error:
        _write_report(parts, position, error)
        raise
    except torch.OutOfMemoryError as error:
        error.add_note(_memory_advice(parts.step, batch))
        raise


def _memory_advice(step: TrainingStep, batch: Batch) -> str:
    """What needed so much memory, and the settings that lower it."""
    height, width = batch.images.shape[2:]
    text = (
        f"{len(batch.labels)} images of {width}x{height} per worker in {step.precision}, peak "
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB. What needs less: more workers (cluster.num_workers), "
        "which share the batch; a smaller batch (data.plan.identities_per_batch, of a keypoint run "
        "data.plan.batch_size), where training.step.accumulate_batches keeps the images of an update, each batch mined "
        "by itself; smaller images (data.transform.height and .width)"
    )
    return text + ("; training.step.precision=auto" if step.precision == "float32" else "")


def _write_report(parts: _Parts, position: Position, error: NonFiniteLossError) -> None:
    name = f"nonfinite-step-{position.step:08d}-rank-{rank()}.json"
    if parts.folder is None:
        logger.error("step %d: %s", position.step, error)
        return
    # JSON has no NaN: write the numbers that are none as text.
    report = json.loads(json.dumps(error.report), parse_constant=str)
    for batch in report["batches"]:
        batch["keys"] = list(parts.names(batch["samples"]))
    try:
        write_bytes_atomic(parts.folder.child(name), json_to_bytes({"step": position.step, **report}))
    except OSError as failure:
        logger.error("the report %s could not be written: %s", name, failure)
    logger.error("step %d: %s; see %s", position.step, error, name)


def _commit(parts: _Parts, position: Position) -> str | None:
    """Save on rank 0 and tell everybody: the name once it is committed, None when it could not be written."""
    if parts.store is None:
        return None
    name = trouble = None
    counters = parts.counters()
    if rank() == 0:
        snapshot = take_snapshot(parts.step, _after(position, parts.stream), parts.run, counters)
        try:
            name = parts.store.save(snapshot)
        except CheckpointFailedError as error:
            trouble = str(error)
    answer = json.loads(share_text(json.dumps([name, trouble])) or "[null, null]")
    if answer[1] is not None:
        raise CheckpointFailedError(answer[1])
    committed: str | None = answer[0]
    return committed
