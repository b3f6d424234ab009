"""Pictures of parts: what a PANet sees in the images of a shard set, and how a PMNet answers to its parts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from reid.build.added_parts import PartAdditionConfig, locate_parts, refined_mask
from reid.build.data import open_eval_stream
from reid.build.evaluation import TrainedModel
from reid.config import PMNetExperiment, with_overrides
from reid.contracts import Split
from reid.data.decode import UnreadableImageError, decode_image, decode_mask
from reid.data.shard_set import ShardSet
from reid.data.transforms import EvalTransform
from reid.models.panet import PANet
from reid.models.pmnet import PMNet
from reid.parts import uniform_stripes
from reid.visual.parts import LocatedParts, PartResponses, parts_sheet, responses_sheet


def picture_of_parts(
    trained: TrainedModel, shards: ShardSet, config: PartAdditionConfig, count: int = 8, *, split: Split | None = None
) -> NDArray[np.uint8]:
    """Images spread evenly over a set, with attention, masks and boxes, as an RGB sheet (PMANet, Figures 4 and 8).

    Args:
        trained: A PANet.
        shards: Images, and the coarse masks where the set holds them.
        config: Of masks and boxes.
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
        probabilities, (attention,), (parts,) = locate_parts(model, batch, config.parts, flip=config.flip)
        groups = [parts.channel_part == part for part in range(config.parts.num_parts)]
        maps = [attention.mean(axis=0)]
        maps += [attention[own].mean(axis=0) if own.any() else np.zeros_like(maps[0]) for own in groups]
        located.append(
            LocatedParts(
                image=image,
                caption=str(index.key[number]),
                coarse=coarse,
                refined=refined_mask(probabilities[0], *image.shape[:2], min_piece=config.min_piece),
                boxes=parts.boxes,
                attention=np.stack(maps),
                channels=[int(own.sum()) for own in groups],
            )
        )
    if not located:
        raise ValueError(f"no image of {shards.manifest.name} can be read: there is nothing to draw")
    return parts_sheet(located)


def picture_of_responses(trained: TrainedModel, shards: ShardSet, count: int = 4) -> NDArray[np.uint8]:
    """Training images spread evenly over a set, with the response maps of each branch before and after its attention.

    Args:
        trained: A PMNet with branches.
        shards: What it was trained on: masks and boxes are those that training saw, without augmentation.
        count: Images at the most.
    """
    model, experiment = trained.model, trained.experiment
    assert isinstance(model, PMNet)
    assert isinstance(experiment, PMNetExperiment)
    assert model.config.part_head is not None
    rows = shards.index.rows("train")
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
    settings = [f"evaluation.partial_tasks={model.needs_parts}", f"evaluation.batch_size={len(chosen)}"]
    stream = open_eval_stream(with_overrides(experiment, settings), shards, chosen, torch.device("cpu"))
    try:
        batch = next(iter(stream))
    finally:
        stream.close()
    with torch.inference_mode():
        found = model.responses(batch.images, batch.masks, batch.boxes)
    num_parts = model.config.part_head.num_parts
    boxes = uniform_stripes(num_parts)[None].repeat(len(chosen), 0) if batch.boxes is None else batch.boxes.numpy()
    return responses_sheet(
        [
            PartResponses(
                image=batch.images[place].permute(1, 2, 0).contiguous().numpy(),
                caption=str(shards.index.key[sample]),
                boxes=boxes[place],
                maps=[
                    (task, before[place].float().numpy(), after[place].float().numpy())
                    for task, (before, after) in found.items()
                ],
            )
            for place, sample in enumerate(batch.samples.tolist())
        ]
    )
