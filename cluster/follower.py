"""Beside training, in the driver: prints progress, publishes figures, and has checkpoints evaluated.

Training never waits for this: the follower reads what rank 0 wrote into the run folder (rows and committed
checkpoints), gives each checkpoint that is due to evaluation workers, and stores the result beside it. A driver that
died finds in the run folder what is still to be evaluated.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Any, Self

from cluster.evaluation import EvaluationFailed, PendingEvaluation, start_evaluation
from cluster.metrics import DriverMetrics, TensorBoardLog
from reid.build.metrics_log import MetricsLog, read_metrics, row_key
from reid.build.run_folder import RunFolder
from reid.config import Experiment
from reid.evaluation.results import RetrievalResult
from reid.training.checkpoint import CheckpointStore

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
PIN_HOLDER = "evaluation"


class RunFollower:
    """Follows a run in a thread for the time of a `with` block."""

    def __init__(self, experiment: Experiment, folder: RunFolder) -> None:
        self._experiment = experiment
        self._folder = folder
        self._store = CheckpointStore(folder.checkpoints, experiment.training.checkpoint)
        self._log = MetricsLog(folder.location)
        self._tensorboard = TensorBoardLog(experiment.metrics, folder.location.child("tensorboard"))
        self._metrics = DriverMetrics(experiment.metrics, experiment.name)
        self._seen = {row_key(row) for row in read_metrics(folder.location)}
        self._pending: PendingEvaluation | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="run-follower", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._pending is not None:
            self._pending.cancel()
        self._tensorboard.close()
        self._metrics.close()

    def finish(self) -> list[RetrievalResult]:
        """Waits for the evaluations still due and returns all results by rising step."""
        self._stop.set()
        self._thread.join()
        self._print_new_rows()
        while self._pending is not None or self._due() is not None:
            self._evaluate(wait_seconds=None)
        self._tensorboard.flush()
        stored = [(name, self._folder.evaluation(name)) for name in sorted(self._folder.evaluated())]
        return [RetrievalResult.from_json(result) for _, result in stored if result and "error" not in result]

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._print_new_rows()
                self._evaluate(wait_seconds=0.0)
            except Exception:
                # What runs beside training must not end it.
                logger.exception("the follower met an error and goes on")

    def _print_new_rows(self) -> None:
        total = self._experiment.training.loop.epochs
        for row in read_metrics(self._folder.location):
            key = row_key(row)
            if key in self._seen or row["kind"] == "evaluation":
                continue
            self._seen.add(key)
            if row["kind"] == "message":
                logger.warning("worker: %s", row["text"])
                continue
            self._tensorboard.add(row, row["step"], "train")
            if row["kind"] == "epoch" and row.get("finished_epoch"):
                logger.info("%s", epoch_line(row, total))
                self._metrics.epoch(int(row["epoch"]) + 1)
        self._tensorboard.flush()

    def _due(self) -> str | None:
        """The newest checkpoint that is to be evaluated and is not yet; older ones wait."""
        done = self._folder.evaluated()
        every = self._experiment.evaluation.every_epochs
        last = self._experiment.training.loop.epochs
        for name in reversed(self._store.names()):
            if name in done:
                continue
            finished = _epochs_finished(self._store, name)
            if finished is not None and (finished % every == 0 or finished == last):
                return name
        return None

    def _evaluate(self, wait_seconds: float | None) -> None:
        if self._pending is None:
            name = self._due()
            if name is None:
                return
            self._store.pin(name, PIN_HOLDER, self._experiment.cluster.evaluation_timeout_seconds)
            self._pending = start_evaluation(self._experiment, self._folder.checkpoints.child(name).uri)
        pending = self._pending
        name = pending.checkpoint
        try:
            evaluation = pending.result(wait_seconds)
            if evaluation is None:
                return
            self._folder.write_evaluation(name, evaluation.to_json())
            self._publish(name, evaluation.result)
        except EvaluationFailed as error:
            logger.warning("evaluation of %s failed and is not repeated: %s", name, error)
            self._folder.write_evaluation(name, {"error": str(error)})
            self._metrics.evaluation_failed()
        self._store.unpin(name, PIN_HOLDER)
        self._pending = None

    def _publish(self, name: str, result: RetrievalResult) -> None:
        figures = result.figures()
        step = int(name.rsplit("-", 1)[-1])
        logger.info("evaluated %s: %s", name, ", ".join(f"{key} {100 * value:.1f}" for key, value in figures.items()))
        self._log.append("evaluation", {"step": step, "checkpoint": name, "protocol": result.protocol, **figures})
        self._tensorboard.add(figures, step, "evaluation")
        self._metrics.evaluation(figures)


def epoch_line(row: dict[str, Any], total_epochs: int) -> str:
    """One line an epoch with the figures that a person wants.

    >>> epoch_line({"epoch": 4, "step": 160, "loss": 2.25, "images_per_second": 120.0, "data_waiting": 0.01}, 30)
    'epoch 5/30  step 160  loss 2.250  120 images/s  1.0% waiting for data'
    """
    parts = [f"epoch {row['epoch'] + 1}/{total_epochs}", f"step {row['step']:,}", f"loss {row.get('loss', 0):.3f}"]
    losses = [f"{key.removeprefix('loss/')} {value:.3f}" for key, value in row.items() if key.startswith("loss/")]
    if losses:
        parts.append("= " + " ".join(losses))
    anchors = [
        f"{100 * value:.0f}" for key, value in row.items() if key.startswith("valid_anchors/") and "global" not in key
    ]
    if anchors:
        parts.append(f"planes {'/'.join(anchors)}%")
    if "learning_rate" in row:
        parts.append(f"lr {row['learning_rate']:.2e}")
    parts.append(f"{row.get('images_per_second', 0):.0f} images/s")
    parts.append(f"{100 * row.get('data_waiting', 0):.1f}% waiting for data")
    if row.get("updates_skipped"):
        parts.append(f"{row['updates_skipped']} updates skipped")
    return "  ".join(parts)


def _epochs_finished(store: CheckpointStore, name: str) -> int | None:
    """Epochs that a checkpoint has behind it; None when it was made inside an epoch or is gone."""
    position = store.load_position(name)
    return position.epoch if position is not None and position.step_in_epoch == 0 else None
