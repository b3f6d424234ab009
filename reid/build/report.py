"""The report of a run: figures, curves, rank lists, planes and activation maps on one self-contained page."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid.build.added_parts import PartAdditionConfig
from reid.build.addition_pictures import KEYPOINT_TILE, draw_image_planes
from reid.build.data import compared_planes, open_eval_stream
from reid.build.evaluation import load_trained_model
from reid.build.keypoint_report import keypoint_facts, keypoint_sections
from reid.build.metrics_log import read_metrics
from reid.build.part_pictures import picture_of_parts, picture_of_responses
from reid.build.pictures import as_jpeg, drawings, raw_image
from reid.build.results import Result, read_result
from reid.build.run_folder import RunFolder
from reid.config import AnyExperiment, Experiment, KeypointExperiment, PANetExperiment, PMNetExperiment, ReidExperiment
from reid.contracts import Batch, Split
from reid.data.decode import UnreadableImageError
from reid.data.shard_set import ShardSet
from reid.evaluation.keypoint_results import KeypointResult
from reid.evaluation.report import Picture, Report, Section, render_report
from reid.evaluation.results import RetrievalResult
from reid.keypoints import PLANE_NAMES
from reid.settings_file import to_yaml
from reid.storage import Location, exists, write_bytes_atomic
from reid.visual.activation import activation_picture, distance_activation_maps
from reid.visual.curves import draw_curves
from reid.visual.mosaic import column, row
from reid.visual.rank_lists import rank_list_picture

logger = logging.getLogger(__name__)

PLANE_PICTURES = 12
ACTIVATION_PAIRS = 4
PART_PICTURES = 8
RESPONSE_PICTURES = 4


def write_run_report(experiment: AnyExperiment, folder: RunFolder, shards: ShardSet, plan: str = "") -> str:
    """Writes `report/index.html` and `report/report.json` of a run from what its folder holds.

    Args:
        experiment: The run.
        folder: Its folder, with at least one evaluation.
        shards: The data set, for pictures.
        plan: The plan that was printed.

    Returns:
        Address of the page.

    Raises:
        ValueError: The run has no evaluation yet.
    """
    stored = [(name, folder.evaluation(name)) for name in sorted(folder.evaluated())]
    evaluations = [(name, data) for name, data in stored if data is not None]
    if not evaluations:
        raise ValueError(f"{folder.location.uri} has no evaluation to report; see the warnings above")
    results = [read_result(experiment, data) for _, data in evaluations]
    name, newest = evaluations[-1]
    rows = read_metrics(folder.location)
    page = Report(
        title=experiment.name,
        subtitle=f"{shards.manifest.name}, protocol {results[-1].protocol}",
        results=results[-1:],
        facts=_facts(experiment, shards, rows, name),
        sections=[
            *_curves(rows, results, evaluations),
            *_sections(experiment, folder.checkpoints.child(name), shards, results[-1], newest["examples"]),
            *([Section(title="Plan of the run", text=plan, folded=True)] if plan else []),
            Section(title="Configuration", text=to_yaml(experiment), folded=True),
        ],
    )
    location = folder.report.child("index.html")
    write_bytes_atomic(location, render_report(page).encode())
    summary = {"run": experiment.name, "results": [data for _, data in evaluations]}
    write_bytes_atomic(folder.report.child("report.json"), json.dumps(summary, indent=1, allow_nan=False).encode())
    return location.uri


def _sections(
    experiment: AnyExperiment,
    checkpoint: Location,
    shards: ShardSet,
    result: Result,
    examples: Sequence[Mapping[str, Any]],
) -> list[Section]:
    """What the page shows of this kind of run."""
    match experiment:
        case KeypointExperiment():
            assert isinstance(result, KeypointResult)
            return keypoint_sections(shards, result, examples)
        case _:
            return [
                *(_parts(checkpoint, shards) if isinstance(experiment, PANetExperiment) else []),
                *(_responses(experiment, checkpoint, shards) if isinstance(experiment, PMNetExperiment) else []),
                *rank_list_sections(examples, shards),
                *_planes(experiment, shards),
                *_activations(experiment, checkpoint, shards, examples),
            ]


def _facts(
    experiment: AnyExperiment, shards: ShardSet, rows: Sequence[Mapping[str, Any]], checkpoint: str
) -> dict[str, str]:
    epochs = [row for row in rows if row["kind"] == "epoch"]
    rates = [row["images_per_second"] for row in epochs if row.get("images_per_second")]
    facts = {
        "Training": f"{shards.manifest.counts.get('train', 0):,} images, {shards.manifest.num_classes:,} vehicles",
        **(keypoint_facts(experiment) if isinstance(experiment, KeypointExperiment) else _network_facts(experiment)),
        "Checkpoint": checkpoint,
        "Seed": str(experiment.seed),
    }
    if rates:
        facts["Speed"] = f"{float(np.median(rates)):,.0f} images/s"
    return facts


def _network_facts(experiment: ReidExperiment) -> dict[str, str]:
    plan, transform = experiment.data.plan, experiment.data.transform
    return {
        "Network": f"{experiment.model.backbone.name}, {transform.width}x{transform.height}, " + _method(experiment),
        "Batch": f"{plan.identities_per_batch} identities x {plan.images_per_identity} images",
    }


def _method(experiment: ReidExperiment) -> str:
    match experiment:
        case PANetExperiment():
            return "PANet"
        case PMNetExperiment():
            return "PMANet" if experiment.model.planes is None else "PMANet with PPT's planes"
        case Experiment():
            return "plain baseline" if experiment.model.planes is None else "PPT"


def _curves(
    rows: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    evaluations: Sequence[tuple[str, Mapping[str, Any]]],
) -> list[Section]:
    """Losses, figures, and plane anchors or heights of peaks over the steps."""

    def points(kind: str, key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in rows if row["kind"] == kind and row.get(key) is not None]

    keys = sorted({key for row in rows if row["kind"] == "epoch" for key in row})
    losses = {key.removeprefix("loss/"): points("epoch", key) for key in keys if key.startswith("loss/")}
    anchors = {
        key.removeprefix("valid_anchors/"): [(step, 100 * share) for step, share in points("epoch", key)]
        for key in keys
        if key.removeprefix("valid_anchors/") in PLANE_NAMES
    }
    steps = [int(name.rsplit("-", 1)[-1]) for name, _ in evaluations]
    figures = {
        figure: [(step, 100 * result.figures()[figure]) for step, result in zip(steps, results, strict=True)]
        for figure in _drawn_figures(results)
    }
    weights = {key.removeprefix("weight/"): points("epoch", key) for key in keys if key.startswith("weight/")}
    peaks = {key.removeprefix("peak/"): points("epoch", key) for key in keys if key.startswith("peak/")}
    drawings: list[tuple[Mapping[str, Sequence[tuple[float, float]]], str, str]] = [
        (losses, "loss", "Losses (mean of each epoch)"),
        (figures, "percent", "Retrieval" if isinstance(results[-1], RetrievalResult) else "Keypoints"),
        (anchors, "percent of anchors", "Anchors that count, per plane"),
        (weights, "weight", "Weights of the identity losses"),
        (peaks, "height", "Peaks of visible and invisible points"),
    ]
    pictures = [
        Picture(
            data=draw_curves(curves, x_label="step", y_label=label, title=title),
            media_type="image/svg+xml",
            description=title,
        )
        for curves, label, title in drawings
        if any(curves.values())
    ]
    return [Section(title="Course of the run", pictures=pictures)] if pictures else []


def _drawn_figures(results: Sequence[Result]) -> list[str]:
    """Names of the figures that are drawn over the steps: such as every result has."""
    names = list(results[-1].figures())
    if isinstance(results[-1], RetrievalResult):
        names = ["mAP", "R1", "mINP", "mAP+RR", "R1+RR"]
    return [name for name in names if all(name in result.figures() for result in results)]


def rank_list_sections(examples: Sequence[Mapping[str, Any]], shards: ShardSet) -> list[Section]:
    """Rank lists of the easiest, the median and the hardest queries of an evaluation."""
    sections = []
    for difficulty in ("easiest", "median", "hardest"):
        pictures = drawings(
            lambda example: as_jpeg(
                _rank_list(example, shards),
                f"{shards.index.key[example['query']]}: average precision {100 * example['average_precision']:.1f}",
            ),
            [example for example in examples if example["difficulty"] == difficulty],
        )
        if pictures:
            introduction = (
                "Query in blue; right vehicles in green, wrong ones in red frames; vehicle, camera and distance below."
            )
            sections.append(
                Section(
                    title=f"Rank lists: {difficulty} queries", introduction=introduction, pictures=pictures, wide=True
                )
            )
    return sections


def _rank_list(example: Mapping[str, Any], shards: ShardSet) -> NDArray[np.uint8]:
    index = shards.index
    captions = [
        f"{index.vehicle_id[sample]} {index.camera_id[sample] or '?'} {distance:.2f}"
        for sample, distance in zip(example["gallery"], example["distances"], strict=True)
    ]
    return rank_list_picture(
        raw_image(shards, example["query"]),
        [raw_image(shards, sample) for sample in example["gallery"]],
        example["is_positive"],
        captions=captions,
        query_caption=f"{index.vehicle_id[example['query']]}  {index.camera_id[example['query']]}",
    )


def _planes(experiment: ReidExperiment, shards: ShardSet) -> list[Section]:
    """Annotated training images with the planes that training compares."""
    config, index = compared_planes(experiment), shards.index
    rows = index.rows("train")
    rows = rows[index.has_keypoints[rows]]
    if config is None or not len(rows):
        return []
    chosen = rows[np.linspace(0, len(rows) - 1, min(PLANE_PICTURES, len(rows))).astype(int)]
    tiles = drawings(
        lambda sample: draw_image_planes(raw_image(shards, sample), index.keypoints[sample], KEYPOINT_TILE, config),
        chosen.tolist(),
    )
    if not tiles:
        return []
    mosaic = column([row(tiles[start : start + 6]) for start in range(0, len(tiles), 6)])
    introduction = (
        "Training images with their keypoints and the planes that PPT warps:"
        " front orange, back purple, side blue, top green."
    )
    return [Section(title="Planes", introduction=introduction, pictures=[as_jpeg(mosaic, "")], wide=True)]


def _parts(checkpoint: Location, shards: ShardSet) -> list[Section]:
    """Attention, masks and boxes of test images (PMANet, Figures 4 and 8)."""
    if not exists(checkpoint):
        return []
    trained = load_trained_model(checkpoint, torch.device("cpu"))
    splits: tuple[Split, ...] = ("gallery", "test", "train")
    shown = next(split for split in splits if len(shards.index.rows(split)))
    sheet = picture_of_parts(trained, shards, PartAdditionConfig(), PART_PICTURES, split=shown)
    introduction = (
        "Attention of all channels and of the channels that look at each part; the coarse mask that PANet learnt from,"
        " the refined one, the boxes of the parts, and what they show of the vehicle."
    )
    return [Section(title="Parts", introduction=introduction, pictures=[as_jpeg(sheet, "")], wide=True)]


def _has_maps(experiment: ReidExperiment) -> bool:
    if not isinstance(experiment, PMNetExperiment) or experiment.model.global_head is not None:
        return True
    return experiment.model.part_head is not None and experiment.model.part_head.tasks != "partial"


def _responses(experiment: PMNetExperiment, checkpoint: Location, shards: ShardSet) -> list[Section]:
    """Response maps of the branches before and after their attention (PMANet, Figure 9)."""
    if experiment.model.part_head is None or not exists(checkpoint):
        return []
    try:
        sheet = picture_of_responses(load_trained_model(checkpoint, torch.device("cpu")), shards, RESPONSE_PICTURES)
    except UnreadableImageError as error:
        logger.warning("the report shows no branches: %s", error)
        return []
    introduction = (
        "Where each branch answers in training images, before and after its attention: main tasks on the whole image,"
        " partial tasks on the part that they see."
    )
    return [Section(title="Branches", introduction=introduction, pictures=[as_jpeg(sheet, "")], wide=True)]


def _activations(
    experiment: ReidExperiment, checkpoint: Location, shards: ShardSet, examples: Sequence[Mapping[str, Any]]
) -> list[Section]:
    """Distance activation maps (PPT, section 4.5.1) of queries and their nearest wrong gallery image."""
    if not exists(checkpoint) or not _has_maps(experiment):
        # Retention has deleted it since it was evaluated, or retrieval looks at no map of the whole image.
        return []
    device = torch.device("cpu")
    trained = load_trained_model(checkpoint, device)
    pairs = []
    for example in [*reversed(examples)]:
        wrong = [s for s, positive in zip(example["gallery"], example["is_positive"], strict=True) if not positive]
        if wrong:
            pairs.append((int(example["query"]), int(wrong[0])))

    def draw(pair: tuple[int, int]) -> Picture:
        stream = open_eval_stream(experiment, shards, np.array(pair, dtype=np.int64), device)
        try:
            batch: Batch = next(iter(stream))
        finally:
            stream.close()
        with torch.inference_mode():
            maps = trained.model.feature_map(batch.images)
            features = trained.model.pooling(maps)
        height, width = batch.images.shape[2:]
        heats = distance_activation_maps(features.float(), maps.float(), (height, width))
        images = [image.permute(1, 2, 0).contiguous().numpy() for image in batch.images]
        picture = activation_picture((images[0], images[1]), heats, captions=("query", "nearest wrong vehicle"))
        return as_jpeg(picture, "")

    pictures = drawings(draw, pairs[:ACTIVATION_PAIRS])
    introduction = (
        "Where the network sees what tells a query from the nearest wrong vehicle (distance activation maps)."
    )
    return [Section(title="Activation maps", introduction=introduction, pictures=pictures)] if pictures else []
