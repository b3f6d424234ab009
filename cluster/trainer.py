"""The driver of a training run: checks, plan, Ray Train, evaluation beside it, table and report at the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster.clocks import warn_of_clocks
from cluster.evaluation import evaluate_checkpoint
from cluster.follower import RunFollower
from cluster.resources import (
    absolute_address,
    check_evaluation_resources,
    check_training_resources,
    ray_connection,
    resolve_device,
    run_config,
    scaling_config,
)
from cluster.run_marks import EndMark, GivenUp, StopMark
from cluster.train_loop import train_worker
from cluster.worker_failures import words_of_ranks
from reid.build.data import check_train_data, open_data
from reid.build.evaluation import check_evaluation
from reid.build.initial_weights import CACHE, check_first_weights, first_weights
from reid.build.report import write_run_report
from reid.build.results import Result, print_results
from reid.build.run_folder import RunFolder, open_run, refuse_mixed_folders
from reid.build.run_plan import describe_plan
from reid.build.training import describe_run
from reid.config import AnyExperiment, SomeExperiment, with_overrides
from reid.data.plan import lanes_of_worker
from reid.data.shard_set import ShardSet
from reid.training.checkpoint import CheckpointStore
from reid.training.checkpoint_hold import held
from reid.training.continuation import change_of_rate, refuse_other_run
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

    results: tuple[Result, ...]
    """Evaluations by rising step."""
    report: str
    """Address of the report page."""


@dataclass(frozen=True)
class CheckedRun:
    """A run that can start: nobody else has its folder, and its cluster is connected."""

    experiment: AnyExperiment
    """With absolute addresses."""
    folder: RunFolder
    shards: ShardSet
    lock: RunLock
    resumed_from: str | None
    """Name of the checkpoint that it continues at."""
    device: str
    """Of its training workers."""
    plan: str
    """As it was logged."""


@contextmanager
def checked_run(
    experiment: AnyExperiment, resume: Resume, resume_anyway: bool, *, figures_needed: bool = True
) -> Iterator[CheckedRun]:
    """Everything that a run is refused for before its workers start, in this order; then its plan is logged.

    Args:
        experiment: The run.
        resume: Whether existing checkpoints may, must not or have to be there.
        resume_anyway: Continue although settings differ from the checkpoint's.
        figures_needed: Refuse data on which every evaluation would fail.

    Raises:
        DataError, ValueError: As `train`.
    """
    experiment = with_absolute_addresses(experiment)
    refuse_mixed_folders(experiment)
    folder = open_run(experiment)
    lanes_of_worker(experiment.data.plan, 0, experiment.cluster.num_workers)  # refuses a batch that cannot be shared
    with ExitStack() as stack:
        shards = stack.enter_context(open_data(experiment))
        if figures_needed:
            check_evaluation(experiment, shards)
        try:
            lock = stack.enter_context(RunLock(folder.location))
        except OSError as error:
            raise ValueError(f"runs={experiment.runs}: cannot be written: {error}") from error
        newest = _check_resume(experiment, folder, shards.manifest.hash, resume, resume_anyway)
        check_train_data(experiment, shards)
        if newest is None:
            check_first_weights(experiment)
        stack.enter_context(ray_connection())
        device = resolve_device(experiment.cluster)
        check_training_resources(experiment.cluster, device)
        check_evaluation_resources(experiment.cluster)
        warn_of_clocks()
        plan = describe_plan(experiment, shards, device=device, resumed_from=newest)
        logger.info("%s", plan)
        yield CheckedRun(experiment, folder, shards, lock, newest, device, plan)


def train(
    experiment: AnyExperiment,
    resume: Resume = Resume.AUTO,
    *,
    resume_anyway: bool = False,
    figures_needed: bool = True,
) -> TrainingOutcome:
    """Trains an experiment to its last epoch, or from its newest checkpoint on, and reports.

    Args:
        experiment: The run.
        resume: Whether existing checkpoints may, must not or have to be there.
        resume_anyway: Continue although settings differ from the checkpoint's.
        figures_needed: Refuse data on which every evaluation would fail, before training rather than after it.

    Raises:
        DataError: The shards cannot be used.
        ValueError: Configuration, data, checkpoints or cluster do not fit.
        TrainingFailed: Workers failed more often than `cluster.max_failures`, one gave training up, or the storage
            failed.
        EvaluationFailed: Training is complete, the evaluation of its last checkpoint is not.
        KeyboardInterrupt: The run was interrupted: once, and it has saved a checkpoint; twice, and it ended at once.
    """
    with checked_run(experiment, resume, resume_anyway, figures_needed=figures_needed) as run:
        experiment, folder, device = run.experiment, run.folder, run.device
        folder.write_config(experiment)
        folder.clear_unfinished_ray_state()
        EndMark(folder.location).remove()
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"experiment": experiment.model_dump(mode="json"), "resume_anyway": resume_anyway},
            torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo", timeout_s=600),
            scaling_config=scaling_config(experiment.cluster, device),
            run_config=run_config(experiment.cluster, folder.location),
        )
        resumed_step = 0 if run.resumed_from is None else int(run.resumed_from.rsplit("-", 1)[-1])
        with _storage_failures_in_words(folder):
            with RunFollower(experiment, folder, run.lock, resumed_step=resumed_step) as follower:
                _fit_stoppable(trainer, follower, folder)
                _refuse_unfinished(experiment, folder)
                results = follower.finish()
            page = _report(experiment, folder, run.shards, results[-1], run.plan)
        return TrainingOutcome(results=tuple(results), report=page)


@contextmanager
def _storage_failures_in_words(folder: RunFolder) -> Iterator[None]:
    """A disk or an object store that fails once training has begun leaves a run that can be continued."""
    try:
        yield
    except OSError as error:
        raise TrainingFailed(f"the storage failed: {error}\n{_what_is_left(folder)}") from error


def _fit_stoppable(trainer: TorchTrainer, follower: RunFollower, folder: RunFolder) -> None:
    """`trainer.fit()` that the first interruption ends after a checkpoint, and the second at once.

    Training is waited for in a thread: on the main thread Ray would answer Ctrl-C by ending the workers where they are.
    """
    mark = StopMark(folder.location)
    mark.remove()
    ended: Future[None] = Future()

    def work() -> None:
        try:
            _fit(trainer, folder)
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    threading.Thread(target=work, name="ray-train", daemon=True).start()
    try:
        ended.result()
    except KeyboardInterrupt:
        if follower.lock_lost:
            raise TrainingFailed("another driver has taken over this run; this one stopped") from None
        logger.warning("stopping: the workers finish their step and save a checkpoint (once more: stop at once)")
        mark.put()
        ended.result()
        raise
    finally:
        mark.remove()


def _refuse_unfinished(experiment: AnyExperiment, folder: RunFolder) -> None:
    """Raises when training ended without a fault before its last epoch: somebody has put the stop mark."""
    newest = CheckpointStore(folder.checkpoints).newest_position()
    if newest is None or newest[1].epoch < experiment.training.loop.epochs:
        raise TrainingFailed(
            f"the run was stopped at {newest[0] if newest else 'its first step'}, before its last epoch; the same"
            " command with --resume auto continues there"
        )


def _fit(trainer: TorchTrainer, folder: RunFolder) -> None:
    """`trainer.fit()` with its ways of ending told apart."""
    try:
        trainer.fit()
    except TrainingFailedError as error:
        _raise_marked(folder)
        text = words_of_ranks(getattr(error, "worker_failures", {}))
        raise TrainingFailed(f"training failed: {text or str(error).strip()}\n{_what_is_left(folder)}") from error
    except RayError as error:
        raise TrainingFailed(f"Ray failed: {str(error).strip()}\n{_what_is_left(folder)}") from error
    _raise_marked(folder)


def _raise_marked(folder: RunFolder) -> None:
    """Raises what a worker has ended the run for."""
    marked = EndMark(folder.location).error()
    if isinstance(marked, GivenUp):
        raise TrainingFailed(f"training was given up: {marked}\n{_what_is_left(folder)}") from marked
    if marked is not None:
        raise marked


def _what_is_left(folder: RunFolder) -> str:
    """Where the same command would go on."""
    try:
        is_new = not CheckpointStore(folder.checkpoints).names()
    except OSError:  # a storage that fails for good
        is_new = False
    if is_new:
        return "No checkpoint had been committed yet: the same command starts anew"
    return (
        f"What was committed is safe in {folder.checkpoints.uri}; the same command with --resume auto continues there"
    )


def with_absolute_addresses(experiment: SomeExperiment) -> SomeExperiment:
    """The experiment with run folder, shards and first weights as every process of the cluster finds them.

    Raises:
        ValueError: A relative path inside the copy of the working directory that `ray job submit` makes: what is
            written there is thrown away after the job.
    """
    addresses = {"runs": experiment.runs, "data.shards": experiment.data.shards}
    key, weights = first_weights(experiment)
    # A URL is the same everywhere; evaluation must not open it.
    if weights is not None and weights != CACHE and "://" not in weights:
        addresses[key] = weights
    return with_overrides(experiment, [f"{key}={absolute_address(key, value)}" for key, value in addresses.items()])


def evaluate_run(experiment: AnyExperiment) -> Result:
    """Evaluates the newest checkpoint of a run on evaluation workers and reports, without training.

    Raises:
        ValueError: The data has no such protocol, the run no checkpoint, or its checkpoint is of other settings.
        EvaluationFailed: The evaluation failed.
    """
    experiment = with_absolute_addresses(experiment)
    folder = open_run(experiment)
    with ExitStack() as stack:
        shards = stack.enter_context(open_data(experiment))
        check_evaluation(experiment, shards)
        stack.enter_context(ray_connection())
        check_evaluation_resources(experiment.cluster)
        store = CheckpointStore(folder.checkpoints)
        name = store.newest()
        if name is None:
            raise ValueError(f"--eval-only: {folder.checkpoints.uri} holds no sound checkpoint; train first")
        refuse_other_run(name, store.load_run(name), describe_run(experiment, shards.manifest.hash))
        with held(folder.checkpoints.child(name), "eval-only"):
            evaluation = evaluate_checkpoint(experiment, folder.checkpoints.child(name).uri)
        folder.write_evaluation(name, evaluation.to_json())
        _report(experiment, folder, shards, evaluation.result)
    return evaluation.result


def _report(experiment: AnyExperiment, folder: RunFolder, shards: ShardSet, result: Result, plan: str = "") -> str:
    """Prints the table of a result, then writes the report of its run; returns the address of the page."""
    logger.info("\n%s\n", print_results([result]))
    page = write_run_report(experiment, folder, shards, plan)
    logger.info("report: %s", page)
    return page


def _check_resume(
    experiment: AnyExperiment, folder: RunFolder, data_hash: str, resume: Resume, resume_anyway: bool
) -> str | None:
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
        saved, run = store.load_run(newest), describe_run(experiment, data_hash)
        refuse_other_run(newest, saved, run, resume_anyway=resume_anyway)
        position = store.load_position(newest)
        epochs = experiment.training.loop.epochs
        if position is not None and position.epoch > epochs:
            raise ValueError(
                f"training.loop.epochs is {epochs}, but {newest} of {folder.location.uri} has {position.epoch} epochs"
                " behind it: give at least as many, or another name"
            )
        change = change_of_rate(saved.config, run.config, position.epoch) if position is not None else ""
        if change:
            logger.warning("%s", change)
    return newest
