"""What the report of a keypoint detector's run shows: tables, and predicted beside annotated keypoints and planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reid.build.addition_pictures import KEYPOINT_TILE, draw_image_planes
from reid.build.pictures import as_jpeg, drawings, raw_image
from reid.config import KeypointExperiment
from reid.data.shard_set import ShardSet
from reid.evaluation.keypoint_results import KeypointResult, planes_table, points_table
from reid.evaluation.report import Section
from reid.visual.mosaic import GREY, captioned, column, fit_tile, row

PAIRS_IN_ROW: Final = 3


def keypoint_facts(experiment: KeypointExperiment) -> dict[str, str]:
    """Network and batch in a line each."""
    model, transform = experiment.model, experiment.data.transform
    return {
        "Network": f"hourglass, {model.num_stacks} stacks of {model.channels} channels,"
        f" {transform.width}x{transform.height}",
        "Batch": f"{experiment.data.plan.batch_size} images",
    }


def keypoint_sections(shards: ShardSet, result: KeypointResult, examples: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Tables of keypoints and planes; images of the evaluation, the worst ones first."""
    sections = [
        Section(
            title="Keypoints",
            introduction="PCK@0.1 and mean error over the annotated visible points (shares of the image's longer side);"
            " F1 of what the detector calls visible.",
            text=points_table(result),
        ),
        Section(
            title="Planes",
            introduction="Share of images that show each plane by predicted and by annotated keypoints, in how many"
            " both agree, and the rate on VeRi-776's gallery: a detector that does not transfer shows up here first.",
            text=planes_table(result),
        ),
    ]
    for kind, title in (("worst", "The worst images"), ("typical", "Images from best to worst")):
        chosen = [example for example in examples if example["kind"] == kind]
        if pairs := drawings(lambda example: _pair(shards, example), chosen):
            mosaic = column([row(pairs[at : at + PAIRS_IN_ROW], gap=18) for at in range(0, len(pairs), PAIRS_IN_ROW)])
            introduction = (
                "Left as predicted, right as annotated; planes front orange, back purple, side blue, top green. Wrong:"
                " points that are missed by more than a tenth, called visible wrongly, or not called so."
            )
            sections.append(Section(title=title, introduction=introduction, pictures=[as_jpeg(mosaic, "")], wide=True))
    return sections


def _pair(shards: ShardSet, example: Mapping[str, Any]) -> NDArray[np.uint8]:
    sample = int(example["sample"])
    image = raw_image(shards, sample)
    predicted = np.array(example["keypoints"], dtype=np.float32)
    drawn = [draw_image_planes(image, points, KEYPOINT_TILE) for points in (predicted, shards.index.keypoints[sample])]
    captions = (f"{shards.index.key[sample]}", f"{example['num_wrong']} of {len(predicted)} wrong")
    tiles = [
        captioned(fit_tile(tile, KEYPOINT_TILE), caption, GREY) for tile, caption in zip(drawn, captions, strict=True)
    ]
    return row(tiles, gap=2)
