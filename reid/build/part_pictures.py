"""Pictures of what a PANet sees in the images of a shard set: for its report and for the job that adds parts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from reid.build.added_parts import hard_mask, locate_parts
from reid.build.evaluation import TrainedModel
from reid.contracts import Split
from reid.data.decode import UnreadableImageError, decode_image, decode_mask
from reid.data.shard_set import ShardSet
from reid.data.transforms import EvalTransform
from reid.evaluation.part_boxes import PartConfig
from reid.models.panet import PANet
from reid.visual.parts import LocatedParts, parts_sheet


def picture_of_parts(
    trained: TrainedModel, shards: ShardSet, config: PartConfig, count: int = 8, *, split: Split | None = None
) -> NDArray[np.uint8]:
    """Images spread evenly over a set, with attention, masks and boxes, as an RGB sheet (PMANet, Figures 4 and 8).

    Args:
        trained: A PANet.
        shards: Images, and the coarse masks where the set holds them.
        config: Of the boxes.
        count: Images at the most; those that cannot be read are left out.
        split: Of the images; None: all.

    Raises:
        ValueError: No image can be read.
    """
    model, transform = trained.model, trained.experiment.data.transform
    assert isinstance(model, PANet)
    index, resize = shards.index, EvalTransform(transform)
    rows = np.arange(len(index)) if split is None else index.rows(split)
    located = []
    for number in rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)].tolist():
        mask = shards.read_mask(number)
        try:
            image = decode_image(shards.read_image(number))
            coarse = None if mask is None else decode_mask(mask)
        except UnreadableImageError:
            continue
        small = resize.image(image, np.empty((transform.height, transform.width, 3), dtype=np.uint8))
        batch = torch.from_numpy(small).permute(2, 0, 1)[None]
        probabilities, (attention,), (parts,) = locate_parts(model, batch, config)
        groups = [parts.channel_part == part for part in range(config.num_parts)]
        maps = [attention.mean(axis=0)]
        maps += [attention[own].mean(axis=0) if own.any() else np.zeros_like(maps[0]) for own in groups]
        located.append(
            LocatedParts(
                image=image,
                caption=str(index.key[number]),
                coarse=coarse,
                refined=hard_mask(probabilities[0], *image.shape[:2]),
                boxes=parts.boxes,
                attention=np.stack(maps),
                channels=[int(own.sum()) for own in groups],
            )
        )
    if not located:
        raise ValueError(f"no image of {shards.manifest.name} can be read: there is nothing to draw")
    return parts_sheet(located)
