"""The driver of a training run: checks, plan, Ray Train, evaluation beside it, table and report at the end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum

from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster.evaluation import evaluate_checkpoint
from cluster.follower import RunFollower
from cluster.resources import (
    check_divisible,
    check_resources,
    ray_connection,
    resolve_device,
    run_config,
    scaling_config,
)
from cluster.train_loop import train_worker
from reid.build.data import open_data
from reid.build.report import write_run_report
from reid.build.run_folder import RunFolder, open_run
from reid.build.run_plan import describe_plan
from reid.build.training import describe_run
from reid.config import Experiment
from reid.evaluation.results import RetrievalResult, results_table
from reid.training.checkpoint import CheckpointStore, refuse_other_run
from reid.training.run_lock import RunLock

logger = logging.getLogger(__name__)


class Resume(StrEnum):
    """What to do about checkpoints that the run already has."""

    AUTO = "auto"
    NEVER = "never"
    MUST = "must"


class TrainingFailed(RuntimeError):  # noqa: N818 - an outcome of a run, reported as such
    """Training ended before its last epoch; what was committed is safe and the run can be resumed."""


@dataclass(frozen=True)
class TrainingOutcome:
    """What a finished run leaves."""

    results: tuple[RetrievalResult, ...]
    """Evaluations by rising step."""
    report: str
    """Address of the report page."""


def train(experiment: Experiment, resume: Resume = Resume.AUTO) -> TrainingOutcome:
    """Trains an experiment to its last epoch, or from its newest checkpoint on, and reports.

    Args:
        experiment: The run.
        resume: Whether existing checkpoints may, must not or have to be there.

    Raises:
        DataError: The shards cannot be used.
        ValueError: Configuration, checkpoints or cluster do not fit; nothing was started.
        TrainingFailed: Workers failed more often than `cluster.max_failures`.
    """
    folder = open_run(experiment)
    check_divisible(experiment.data.plan, experiment.cluster.num_workers)
    with open_data(experiment) as shards, RunLock(folder.location), ray_connection():
        newest = _check_resume(experiment, folder, shards.manifest.hash, resume)
        check_resources(experiment.cluster)
        device = resolve_device(experiment.cluster)
        plan = describe_plan(experiment, shards, device=device, resumed_from=newest)
        logger.info("%s", plan)
        folder.write_config(experiment)
        folder.clear_unfinished_ray_state()
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"experiment": experiment.model_dump(mode="json")},
            torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo", timeout_s=600),
            scaling_config=scaling_config(experiment.cluster, device),
            run_config=run_config(experiment.cluster, folder.location.uri, "ray"),
        )
        with RunFollower(experiment, folder) as follower:
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise TrainingFailed(
                    f"training failed: {_cause(error)}\nWhat was committed is safe in {folder.checkpoints.uri};"
                    " the same command with --resume auto continues there"
                ) from error
            results = follower.finish()
        page = write_run_report(experiment, folder, shards, plan)
        logger.info("\n%s\n", results_table(results[-1:]))
        logger.info("report: %s", page)
        return TrainingOutcome(results=tuple(results), report=page)


def evaluate_run(experiment: Experiment) -> RetrievalResult:
    """Evaluates the newest checkpoint of a run on evaluation workers and reports, without training.

    Raises:
        ValueError: The run has no checkpoint.
    """
    folder = open_run(experiment)
    with open_data(experiment) as shards, ray_connection():
        name = CheckpointStore(folder.checkpoints).newest()
        if name is None:
            raise ValueError(f"--eval-only: {folder.checkpoints.uri} holds no sound checkpoint; train first")
        evaluation = evaluate_checkpoint(experiment, folder.checkpoints.child(name).uri)
        folder.write_evaluation(name, evaluation.to_json())
        page = write_run_report(experiment, folder, shards)
    logger.info("\n%s\n", results_table([evaluation.result]))
    logger.info("report: %s", page)
    return evaluation.result


def _check_resume(experiment: Experiment, folder: RunFolder, data_hash: str, resume: Resume) -> str | None:
    """Name of the checkpoint that the run continues at; refuses what `resume` does not allow or does not fit."""
    store = CheckpointStore(folder.checkpoints, experiment.training.checkpoint)
    newest = store.newest()
    if resume is Resume.NEVER and store.names():
        raise ValueError(
            f"--resume never: {folder.checkpoints.uri} already holds {len(store.names())} checkpoint(s);"
            " choose another name=..., or continue with --resume auto"
        )
    if resume is Resume.MUST and newest is None:
        raise ValueError(f"--resume must: {folder.checkpoints.uri} holds no sound checkpoint")
    if newest is not None:
        refuse_other_run(store.load(newest), describe_run(experiment, data_hash))
    return newest


def _cause(error: TrainingFailedError) -> str:
    """What the failed workers said, each text once with its ranks."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return str(error).strip()
    said: dict[str, list[int]] = {}
    for rank, failure in failures.items():
        cause = getattr(failure, "cause", None) or failure
        said.setdefault(str(cause).strip() or type(cause).__name__, []).append(rank)
    return "; ".join(f"rank {', '.join(map(str, ranks))}: {text[-2000:]}" for text, ranks in said.items())
