"""The work of jobs/evaluate.py: what a command line asks for, done on evaluation workers or in this process."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster.evaluation import evaluate_protocols
from cluster.occlusion_job import OcclusionJob, occlusion_job
from cluster.placement import describe_evaluation_worker
from cluster.resources import check_evaluation_resources, ray_connection
from cluster.trainer import with_absolute_addresses
from reid.build.checkpoints import load_trained_experiment
from reid.build.data import open_data
from reid.build.evaluation import Evaluation, evaluate_all_here
from reid.build.evaluation_page import write_evaluation_page
from reid.build.evaluation_plan import describe_evaluation
from reid.build.keypoint_evaluation import evaluate_keypoints_here
from reid.build.progress import progress_bars
from reid.build.results import print_results
from reid.config import AnyExperiment, KeypointExperiment, retrievals_of, with_overrides
from reid.evaluation.rerank_config import read_reranking
from reid.progress import Stages
from reid.storage import Location, check_output_file, open_location
from reid.training.checkpoint_hold import held

logger = logging.getLogger(__name__)

SHAPED_BY_TRAINING = ("task=", "seed=", "model.", "loss.", "training.", "data.transform.")
"""Overrides that an evaluation refuses: the network is the checkpoint's."""
IDLE = (
    "data.plan.", "metrics.", "evaluation.every_epochs=",
    "cluster.num_workers=", "cluster.device=", "cluster.cpus_per_worker=", "cluster.max_failures=",
)  # fmt: skip
"""Overrides that only training reads."""
SHOWN_ON_THE_PAGE = ("evaluation.num_rank_lists=", "evaluation.rank_list_length=", "evaluation.num_pictures=")
"""Overrides that nothing reads without --page."""


def evaluate(arguments: argparse.Namespace) -> None:
    """Plan, evaluation, table and the files that were asked for.

    Args:
        arguments: Of jobs/evaluate.py.

    Raises:
        ValueError, DataError: The call or the data set is wrong.
        EvaluationFailed: It failed, or took longer than its limit.
    """
    location = open_location(arguments.checkpoint)
    shaped = [text for text in arguments.overrides if text.startswith(SHAPED_BY_TRAINING)]
    if shaped:
        raise ValueError(
            f"{shaped[0]}: the checkpoint was trained without it; evaluation can change how it is evaluated"
        )
    _refuse_idle(arguments)
    check_output_file("--output", arguments.output)
    check_output_file("--page", arguments.page)
    if arguments.page and arguments.occluded:
        raise ValueError("--page shows the ranking of clean queries: give it without --occluded, or --curve instead")
    trained = with_absolute_addresses(with_overrides(load_trained_experiment(location), arguments.overrides))
    occluded = occlusion_job(arguments, trained)
    if repeated := [name for name, count in Counter(arguments.protocol or ()).items() if count > 1]:
        raise ValueError(f"--protocol {repeated[0]} is given twice")
    experiments: list[AnyExperiment] = [trained]
    match trained:
        case KeypointExperiment() if arguments.protocol:
            raise ValueError("--protocol: a keypoint detector has none, it is measured on annotated images; remove it")
        case _ if arguments.protocol:
            experiments = [with_overrides(trained, [f"evaluation.protocol={name}"]) for name in arguments.protocol]
    if arguments.rerank:
        experiments = [_with_reranking(experiment, arguments.rerank) for experiment in experiments]
    plan = _plan(arguments, experiments, location, occluded)
    logger.info("%s", plan)
    with held(location, "evaluate"):
        if occluded is not None:
            _evaluate_occluded(arguments, experiments, location, occluded)
        else:
            _evaluate_plain(arguments, experiments, location, plan)


def _refuse_idle(arguments: argparse.Namespace) -> None:
    """ValueError for overrides that this evaluation would not read."""
    for text in arguments.overrides:
        if text.startswith(IDLE):
            raise ValueError(f"{text} does nothing to an evaluation: remove it")
        if arguments.no_ray and text.startswith("cluster."):
            raise ValueError(f"{text} does nothing to an evaluation with --no-ray: remove one of them")
        if text.startswith(SHOWN_ON_THE_PAGE) and not arguments.page:
            raise ValueError(f"{text} is about the page of an evaluation: give --page FILE.html, too, or remove it")


def _plan(
    arguments: argparse.Namespace,
    experiments: Sequence[AnyExperiment],
    location: Location,
    occluded: OcclusionJob | None,
) -> str:
    """What will be done; refuses a protocol that the data set has no images for before any other one costs hours."""
    cluster = experiments[0].cluster
    workers = f"{cluster.evaluation_workers} evaluation worker(s), {describe_evaluation_worker(cluster)} each"
    where = "this process, on the CPU" if arguments.no_ray else workers
    with open_data(experiments[0], verify="sizes") as shards:
        severities = () if occluded is None else occluded.severities
        return describe_evaluation(experiments, location, shards, where=where, severities=severities)


@contextmanager
def _workers(arguments: argparse.Namespace, experiments: Sequence[AnyExperiment]) -> Iterator[None]:
    """Ray, unless it is not wanted."""
    if arguments.no_ray:
        yield
        return
    with ray_connection():
        check_evaluation_resources(experiments[0].cluster)
        yield


def _evaluate_plain(
    arguments: argparse.Namespace, experiments: Sequence[AnyExperiment], location: Location, plan: str
) -> None:
    with _workers(arguments, experiments), progress_bars() as stages:
        if arguments.no_ray:
            evaluations = _evaluate_here(experiments, location, stages)
        else:
            evaluations = evaluate_protocols(experiments, location.uri, location.name, stages)
    results = [evaluation.result for evaluation in evaluations]
    sys.stdout.write(print_results(results) + "\n")
    if arguments.output:
        arguments.output.write_text(json.dumps([result.to_json() for result in results], indent=1, allow_nan=False))
    if arguments.page:
        with open_data(experiments[0], verify="sizes") as shards:
            write_evaluation_page(arguments.page, evaluations, shards, run=experiments[0].name, plan=plan)


def _evaluate_occluded(
    arguments: argparse.Namespace, experiments: Sequence[AnyExperiment], location: Location, job: OcclusionJob
) -> None:
    with _workers(arguments, experiments), progress_bars() as stages:
        results = job.evaluate(retrievals_of(experiments), location, ray=not arguments.no_ray, stages=stages)
    sys.stdout.write(print_results([found.result for found in results]) + "\n")
    if arguments.output:
        arguments.output.write_text(json.dumps([found.to_json() for found in results], indent=1, allow_nan=False))
    job.write(results)


def _with_reranking(experiment: AnyExperiment, text: str) -> AnyExperiment:
    match experiment:
        case KeypointExperiment():
            raise ValueError("--rerank: a keypoint detector ranks nothing; remove it")
        case _:
            rerank = read_reranking(text, experiment.evaluation.protocol)
            evaluation = experiment.evaluation.model_copy(update={"rerank": rerank})
            return experiment.model_copy(update={"evaluation": evaluation})


def _evaluate_here(experiments: Sequence[AnyExperiment], location: Location, stages: Stages) -> list[Evaluation]:
    match experiments[0]:
        case KeypointExperiment() as detector:
            return [evaluate_keypoints_here(detector, location, name=location.name, stages=stages)]
        case _:
            return evaluate_all_here(retrievals_of(experiments), location, name=location.name, stages=stages)
