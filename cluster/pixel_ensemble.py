"""The pixel-space ensemble on a Ray cluster: plane images, five trainings one after the other, one evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import numpy as np

from cluster.evaluation import EvaluationFailed, embed_on_workers
from cluster.resources import absolute_address, check_evaluation_resources, ray_connection
from cluster.shard_tasks import run_on_ray
from cluster.trainer import Resume, train, with_absolute_addresses
from reid.build.data import open_data
from reid.build.pixel_ensemble import (
    GLOBAL,
    PART_WEIGHTS,
    EnsembleEvaluation,
    PartNetwork,
    describe_networks,
    evaluate_pixel_ensemble,
)
from reid.build.plane_images import NoPlaneError, PlaneImageConfig, make_plane_set
from reid.build.plane_pictures import picture_of_plane_sets
from reid.build.progress import progress_bar
from reid.build.run_folder import RunFolder, open_run
from reid.build.training import finished_checkpoint
from reid.config import Experiment, with_overrides
from reid.contracts import DataError
from reid.data.manifest import Manifest
from reid.data.plan import identity_table
from reid.data.shard_set import open_shards
from reid.data.staging import ShardResult
from reid.evaluation.results import RetrievalResult, results_table
from reid.models.perspective import PlaneName
from reid.storage import exists, open_location, read_bytes, write_bytes_atomic
from reid.visual.mosaic import save_picture

logger = logging.getLogger(__name__)

PLANES: tuple[PlaneName, ...] = get_args(PlaneName)
ENSEMBLE_FILE = "ensemble.json"
"""In the run folder `<runs>/<name>`: the figures, and what they follow from."""


def train_pixel_ensemble(
    experiment: Experiment,
    *,
    images: PlaneImageConfig | None = None,
    weights: Mapping[str, float] = PART_WEIGHTS,
    global_run: str | None = None,
    plane_sets: str | None = None,
) -> RetrievalResult:
    """Trains and evaluates the pixel-space ensemble that PPT compares itself with (section 4.4.2, Table 6).

    Makes the images of each plane (see `reid.build.plane_images`), trains the network of whole images as the run
    `<name>-global` and those of the planes as `<name>-front`, `-back`, `-side` and `-top`, each exactly as
    `experiment` says, and ranks by their common distance. The figures, with those of each network alone, are logged as
    a table and stored as `<runs>/<name>/ensemble.json`.

    What is done is not done again: finished sets, runs and evaluations are found, interrupted ones continue. A plane
    that no image shows, or too few training identities for a batch, is left out with a warning and a note.

    Args:
        experiment: The plain baseline: it decides network, size, schedule, seed and protocol. `data.shards` is a set
            with keypoints.
        images: How plane images are made; None: in the size of `data.transform`, with the local branch's default
            limits.
        weights: Of each network's distance: "global" and planes; planes without a weight are not trained.
        global_run: Name of a finished run below `runs`, of the same settings and data set, that serves as the global
            network; None: `<name>-global` is trained.
        plane_sets: Folder for the plane images' sets, such as when `data.shards` cannot be written beside; None: beside
            `data.shards`. A set's folder is `<name of data.shards>-<plane>-<height>x<width>`.

    Returns:
        The ensemble's figures under the experiment's protocol; `notes` say what they are of, `post_processing` is none.

    Raises:
        DataError: The shards cannot be used, or no plane has images enough to train a network.
        ValueError: `model.planes` is not null, `weights` name no plane or lack the global network, `global_run` is not
            finished or of other settings, a folder holds another set, or configuration and cluster do not fit.
        TrainingFailed, KeyboardInterrupt: As `cluster.trainer.train`; the same call continues.
        EvaluationFailed: Everything is trained, embedding the images failed.
    """
    experiment = with_absolute_addresses(experiment)
    _check(experiment, weights)
    images = images or plane_image_config(experiment)
    with ray_connection():
        sets, notes = make_plane_sets(experiment, images, _planes_of(weights), plane_sets)
        if not sets:
            raise DataError("no plane is left to train a network on, so there is no ensemble: " + "; ".join(notes))
        runs = {plane: _run_of(experiment, plane, address) for plane, address in sets.items()}
        if global_run is None:
            whole = _run_of(experiment, GLOBAL, experiment.data.shards)
            networks = [_trained(GLOBAL, whole, weights)]
        else:
            networks = [_reused(with_overrides(experiment, [f"name={global_run}"]), weights)]
        networks += [_trained(plane, run, weights) for plane, run in runs.items()]
        evaluation = _evaluate(experiment, networks, notes)
    logger.info("\n%s\n", results_table([*evaluation.alone, evaluation.result]))
    return evaluation.result


def plane_image_config(experiment: Experiment) -> PlaneImageConfig:
    """Plane images of the size that the experiment's network takes."""
    transform = experiment.data.transform
    return PlaneImageConfig(height=transform.height, width=transform.width)


def make_plane_sets(
    experiment: Experiment, images: PlaneImageConfig, planes: tuple[PlaneName, ...] = PLANES, folder: str | None = None
) -> tuple[dict[PlaneName, str], list[str]]:
    """The sets of plane images that networks can be trained on, by plane, and notes about those that are left out.

    Args:
        experiment: Whose `data.shards` they are made of, and whose batches they must fill.
        images: How they are made.
        planes: Which.
        folder: Where; None: beside `data.shards`.

    Raises:
        DataError, ValueError: As `make_plane_set`.
    """
    source = open_location(experiment.data.shards)
    parent = source.parent.uri if folder is None else absolute_address("plane_sets", folder)
    sets: dict[PlaneName, str] = {}
    notes: list[str] = []
    with ray_connection():
        for plane in planes:
            target = f"{parent.rstrip('/')}/{source.name}-{plane}-{images.height}x{images.width}"
            made = _plane_set(source.uri, target, plane, images)
            reason = _why_untrainable(experiment, target) if isinstance(made, Manifest) else str(made)
            if reason is None:
                sets[plane] = target
            else:
                logger.warning("the ensemble does without the %s: %s", plane, reason)
                notes.append(f"without a network of the {plane}: {reason}")
    return sets, notes


def _plane_set(source: str, target: str, plane: PlaneName, images: PlaneImageConfig) -> Manifest | NoPlaneError:
    """The set of one plane, made by Ray tasks with a bar; or why there is none."""
    with progress_bar(f"images of the {plane}") as draw:

        def show(done: int, total: int, _: ShardResult) -> None:
            draw(done, total)

        try:
            manifest = make_plane_set(source, target, plane, images, run_tasks=run_on_ray, progress=show)
        except NoPlaneError as error:
            return error
        except ValueError as error:
            raise ValueError(
                f"{error}. Images of the {plane} were made there of another data set, in another way or by other"
                " versions of libraries: delete that folder and the runs trained on it, or put the sets elsewhere"
                " (plane_sets, --plane-sets)"
            ) from error
    left_out = ", ".join(f"{count:,} {kind}" for kind, count in manifest.additions[-1].problems.items())
    logger.info("%s: %s images (%s)", target, f"{manifest.num_images:,}", left_out or "all")
    return manifest


def draw_plane_sets(experiment: Experiment, sets: Mapping[PlaneName, str], path: Path, count: int = 12) -> None:
    """Writes a picture of some images of the data set with their planes, as the networks see them."""
    with ExitStack() as stack:
        source = stack.enter_context(open_data(experiment))
        opened = {plane: stack.enter_context(open_shards(address)) for plane, address in sets.items()}
        save_picture(picture_of_plane_sets(source, opened, count), path)


def _check(experiment: Experiment, weights: Mapping[str, float]) -> None:
    if experiment.model.planes is not None:
        raise ValueError(
            "the pixel-space ensemble is made of plain networks, but model.planes is set: model.planes=null"
        )
    if experiment.evaluation.rerank is not None:
        raise ValueError("the ensemble is not re-ranked, but evaluation.rerank is set: evaluation.rerank=null")
    unknown = sorted(set(weights) - {GLOBAL, *PLANES})
    if GLOBAL not in weights or len(weights) < 2 or unknown:
        raise ValueError(f"expected weights of {GLOBAL} and of planes out of {', '.join(PLANES)}, got {dict(weights)}")


def _planes_of(weights: Mapping[str, float]) -> tuple[PlaneName, ...]:
    return tuple(plane for plane in PLANES if plane in weights)


def _why_untrainable(experiment: Experiment, address: str) -> str | None:
    """Why no batch can be made of a plane's set; None: it can."""
    with open_shards(address) as shards:
        index = shards.index
        rows = index.rows("train")
        try:
            identity_table(rows, index.label[rows], index.shard[rows].astype(np.int64), experiment.data.plan)
        except ValueError as error:
            return str(error)
    return None


def _run_of(experiment: Experiment, part: str, shards: str) -> Experiment:
    return with_overrides(experiment, [f"name={experiment.name}-{part}", f"data.shards={shards}"])


def _trained(part: str, run: Experiment, weights: Mapping[str, float]) -> PartNetwork:
    """The network of a part: found finished, or trained to its end."""
    name = finished_checkpoint(run)
    if name is None:
        try:
            # Its own figures are not needed, such as when no query shows the plane; its checkpoint is.
            train(run, Resume.AUTO, figures_needed=False)
        except EvaluationFailed as error:
            logger.warning("%s is trained, its own evaluation failed: %s", run.name, error)
        name = finished_checkpoint(run)
        assert name is not None, "train() ends with a finished run or raises"
    else:
        logger.info("%s is done (%s)", run.name, name)
    checkpoint = open_run(run).checkpoints.child(name)
    return PartNetwork(part=part, weight=weights[part], experiment=run, checkpoint=checkpoint)


def _reused(run: Experiment, weights: Mapping[str, float]) -> PartNetwork:
    """A run that exists as the global network."""
    name = finished_checkpoint(run)
    if name is None:
        raise ValueError(
            f"global_run={run.name}: {open_run(run).checkpoints.uri} holds no checkpoint of its last epoch"
            f" ({run.training.loop.epochs}); train it to its end, or leave global_run out"
        )
    checkpoint = open_run(run).checkpoints.child(name)
    return PartNetwork(part=GLOBAL, weight=weights[GLOBAL], experiment=run, checkpoint=checkpoint)


def _evaluate(experiment: Experiment, networks: list[PartNetwork], notes: list[str]) -> EnsembleEvaluation:
    """The evaluation of these networks: the stored one, or a new one on evaluation workers."""
    folder = open_run(experiment)
    about = {**describe_networks(networks), "notes": notes}
    stored = _stored(folder, about)
    if stored is not None:
        logger.info("%s holds these figures already", folder.location.child(ENSEMBLE_FILE).uri)
        return stored
    check_evaluation_resources(experiment.cluster)
    evaluation = evaluate_pixel_ensemble(
        networks,
        lambda run, checkpoint, rows: embed_on_workers(run, checkpoint.uri, rows),
        name=experiment.name,
        notes=notes,
    )
    text = json.dumps({**evaluation.to_json(), "about": about}, indent=1, allow_nan=False)
    write_bytes_atomic(folder.location.child(ENSEMBLE_FILE), text.encode())
    return evaluation


def _stored(folder: RunFolder, about: Mapping[str, object]) -> EnsembleEvaluation | None:
    location = folder.location.child(ENSEMBLE_FILE)
    if not exists(location):
        return None
    content = json.loads(read_bytes(location))
    return EnsembleEvaluation.from_json(content) if content.get("about") == json.loads(json.dumps(about)) else None
