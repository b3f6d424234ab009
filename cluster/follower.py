"""Beside training, in the driver: prints progress, publishes figures, and has checkpoints evaluated.

Training never waits for this: the follower reads what rank 0 wrote into the run folder (rows and committed
checkpoints), gives each checkpoint that is due to evaluation workers, and stores the result beside it. A driver that
died finds in the run folder what is still to be evaluated.
"""

from __future__ import annotations

import _thread
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from cluster.evaluation import EvaluationFailed, PendingEvaluation, start_evaluation
from cluster.metrics import DriverMetrics, TensorBoardLog
from reid.build.metrics_log import MetricsLog, read_metrics, row_key, write_merged_metrics
from reid.build.results import Result, read_result
from reid.build.run_folder import RunFolder
from reid.build.training import SAMPLES_SKIPPED
from reid.config import AnyExperiment
from reid.keypoints import PLANE_NAMES
from reid.training.checkpoint import CheckpointStore
from reid.training.checkpoint_hold import EXPIRY_SECONDS
from reid.training.run_lock import RunLock

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
REMOTE_POLL_SECONDS = 10.0
EVALUATION_PIN, BEST_PIN = "evaluation", "best"
TRIES = 2


class RunFollower:
    """Follows a run in a thread for the time of a `with` block."""

    def __init__(self, experiment: AnyExperiment, folder: RunFolder, lock: RunLock, *, resumed_step: int = 0) -> None:
        """Nothing runs yet.

        Args:
            experiment: The run.
            folder: Its folder.
            lock: Held by this driver; when it is lost, the run is interrupted.
            resumed_step: Rows up to this step were shown by an earlier driver.
        """
        self.lock_lost = False
        self._experiment = experiment
        self._folder = folder
        self._lock = lock
        self._settings = experiment.evaluation.model_dump(mode="json")
        self._store = CheckpointStore(folder.checkpoints, experiment.training.checkpoint)
        self._log = MetricsLog(folder.location)
        self._tensorboard = TensorBoardLog(experiment.metrics, folder.location.child("tensorboard"))
        self._metrics = DriverMetrics(experiment.metrics, experiment.name)
        self._seen = {row_key(row): row for row in read_metrics(folder.location) if row.get("step", 0) <= resumed_step}
        self._epochs: dict[str, int] = {}
        """Epochs that a checkpoint has behind it; 0 when it was made inside an epoch."""
        self._done = folder.evaluated(self._settings)
        self._failures: dict[str, int] = {}
        self._pins: dict[str, float] = {}
        self._best = self._best_so_far()
        self._pending: PendingEvaluation | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="run-follower", daemon=True)

    def _best_so_far(self) -> tuple[float, str] | None:
        """Headline figure and name of the best checkpoint that an earlier driver had evaluated and pinned."""
        stored = ((name, self._folder.evaluation(name)) for name in sorted(self._done))
        results = [(read_result(self._experiment, data).headline(), name) for name, data in stored if data]
        return max(results, key=lambda result: result[0], default=None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._pending is not None:
            _attempt(self._pending.cancel)
        _attempt(self._write_merged_metrics)
        _attempt(self._tensorboard.close)
        _attempt(self._metrics.close)

    def finish(self) -> list[Result]:
        """Waits for the evaluations still due and returns all results by rising step.

        Raises:
            EvaluationFailed: The last checkpoint could not be evaluated.
        """
        self._stop.set()
        self._thread.join()
        _attempt(self._show_new_rows)
        while self._pending is not None or self._due():
            self._evaluate(wait_seconds=None)
        names = sorted(self._done)
        last = self._store.names()[-1:]
        if not names or (last and last[0] not in names):
            raise EvaluationFailed(
                "training is complete, but its last checkpoint could not be evaluated; the same command tries again"
                f" (see {self._folder.evaluations.uri})"
            )
        results = [self._folder.evaluation(name) for name in names]
        return [read_result(self._experiment, result) for result in results if result]

    def _follow(self) -> None:
        seconds = POLL_SECONDS if self._folder.location.is_local else REMOTE_POLL_SECONDS
        while not self._stop.wait(seconds):
            _attempt(self._look)
            if self._lock.lost and not self.lock_lost:
                self.lock_lost = True
                logger.error("another driver has taken over this run: stopping")
                _thread.interrupt_main()

    def _look(self) -> None:
        self._show_new_rows()
        self._pin_due()
        self._evaluate(wait_seconds=0.0)

    def _write_merged_metrics(self) -> None:
        write_merged_metrics(self._folder.location, read_metrics(self._folder.location))

    def _show_new_rows(self) -> None:
        total = self._experiment.training.loop.epochs
        added = epoch_ended = False
        rows = read_metrics(self._folder.location)
        for row in rows:
            key = row_key(row)
            if self._seen.get(key) == row or row["kind"] == "evaluation":
                continue
            self._seen[key] = row
            if row["kind"] == "message":
                logger.log(logging.getLevelNamesMapping()[row.get("level", "WARNING")], "worker: %s", row["text"])
                continue
            self._tensorboard.add(row, row["step"], str(row["kind"]))
            added = True
            epoch_ended = epoch_ended or row["kind"] == "epoch"
            if row["kind"] == "epoch" and row.get("finished_epoch"):
                logger.info("%s", epoch_line(row, total))
                self._metrics.epoch(int(row["epoch"]) + 1)
        if added:
            self._tensorboard.flush()
        if epoch_ended:
            write_merged_metrics(self._folder.location, rows)

    def _due(self) -> list[str]:
        """Checkpoints to evaluate, newest first."""
        every = self._experiment.evaluation.every_epochs
        last = self._experiment.training.loop.epochs
        due = []
        for name in reversed(self._store.names()):
            if name in self._done or self._failures.get(name, 0) >= TRIES:
                continue
            if name not in self._epochs:
                position = self._store.load_position(name)
                if position is None:  # gone, damaged, or not yet written whole to an object store
                    continue
                self._epochs[name] = position.epoch if position.step_in_epoch == 0 else 0
            finished = self._epochs[name]
            if finished and (finished % every == 0 or finished == last):
                due.append(name)
        return due

    def _pin_due(self) -> None:
        """Keeps retention away from what still waits for its evaluation."""
        now = time.monotonic()
        for name in self._due():
            if self._pins.get(name, 0.0) < now:
                self._store.pin(name, EVALUATION_PIN, EXPIRY_SECONDS)
                self._pins[name] = now + EXPIRY_SECONDS / 2

    def _evaluate(self, wait_seconds: float | None) -> None:
        if self._pending is None:
            due = self._due()
            if not due:
                return
            self._pin_due()
            self._pending = start_evaluation(self._experiment, self._folder.checkpoints.child(due[0]).uri)
        name = self._pending.checkpoint
        try:
            evaluation = self._pending.result(wait_seconds)
            if evaluation is None:
                return
            self._folder.write_evaluation(name, evaluation.to_json())
            self._done.add(name)
            self._publish(name, evaluation.result)
        except EvaluationFailed as error:
            self._failures[name] = self._failures.get(name, 0) + 1
            logger.warning("evaluation of %s failed (try %d of %d): %s", name, self._failures[name], TRIES, error)
            self._folder.write_evaluation(name, {"error": str(error)})
            self._metrics.evaluation_failed()
        self._pending = None
        if name in self._done or self._failures[name] >= TRIES:
            self._store.unpin(name, EVALUATION_PIN)

    def _publish(self, name: str, result: Result) -> None:
        figures = result.figures()
        step = int(name.rsplit("-", 1)[-1])
        logger.info("evaluated %s: %s", name, ", ".join(f"{key} {100 * value:.1f}" for key, value in figures.items()))
        self._log.append("evaluation", {"step": step, "checkpoint": name, "protocol": result.protocol, **figures})
        self._tensorboard.add(figures, step, "evaluation")
        self._tensorboard.flush()
        self._metrics.evaluation(figures)
        if self._best is None or result.headline() > self._best[0]:
            self._store.pin(name, BEST_PIN)
            if self._best is not None:
                self._store.unpin(self._best[1], BEST_PIN)
            self._best = (result.headline(), name)


def _attempt(action: Callable[[], None]) -> None:
    """Does what runs beside training, which must neither end it nor hide how it ended."""
    try:
        action()
    except Exception:
        logger.exception("the follower met an error and goes on")


def epoch_line(row: dict[str, Any], total_epochs: int) -> str:
    """One line an epoch with the figures that a person wants.

    >>> epoch_line({"epoch": 4, "step": 160, "loss": 2.25, "images_per_second": 120.0, "data_waiting": 0.01}, 30)
    'epoch 5/30  step 160  loss 2.250  120 images/s  1.0% waiting for data'
    """
    parts = [f"epoch {row['epoch'] + 1}/{total_epochs}", f"step {row['step']:,}", f"loss {row.get('loss', 0):.3f}"]
    losses = [f"{key.removeprefix('loss/')} {value:.3f}" for key, value in row.items() if key.startswith("loss/")]
    if losses:
        parts.append("= " + " ".join(losses))
    shares = [row.get(f"valid_anchors/{plane}") for plane in PLANE_NAMES]
    anchors = [f"{100 * share:.0f}" for share in shares if share is not None]
    if anchors:
        parts.append(f"planes {'/'.join(anchors)}%")
    peaks = [f"{value:.2f}" for key, value in row.items() if key.startswith("peak/")]
    if peaks:
        parts.append(f"peaks {'/'.join(peaks)}")
    if "learning_rate" in row:
        parts.append(f"lr {row['learning_rate']:.2e}")
    parts.append(f"{row.get('images_per_second', 0):.0f} images/s")
    parts.append(f"{100 * row.get('data_waiting', 0):.1f}% waiting for data")
    unreadable = sum(count for key, count in row.items() if key.startswith(SAMPLES_SKIPPED))
    if unreadable:
        parts.append(f"{unreadable} unreadable images replaced")
    if row.get("updates_skipped"):
        parts.append(f"{row['updates_skipped']} updates skipped")
    return "  ".join(parts)
