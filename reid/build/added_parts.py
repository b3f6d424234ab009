"""Refined masks and part boxes for a shard set: by a trained PANet, or uniform stripes in its place (METHOD 2.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from reid.build.evaluation import TrainedModel
from reid.build.network_additions import NetworkRun, NetworkRunConfig, answer_in_batches
from reid.contracts import Settings
from reid.data.additions import Additions, Provenance, Sample
from reid.data.coarse_masks import ellipse_mask, encode_mask
from reid.data.decode import UnreadableImageError, decode_mask
from reid.evaluation.part_boxes import PartBoxes, PartConfig, part_boxes
from reid.models.panet import PANet
from reid.parts import uniform_stripes

ALGORITHM_VERSION: Final = 1
"""Raise it with any change of masks or boxes made from the same network."""
STRIPES: Final = "uniform_stripes"
"""Flag of images whose channels look at fewer than K places."""
EMPTY_MASK: Final = "foreground_small"
"""Flag of images whose refined mask is an ellipse, as the network found next to nothing."""


class PartAdditionConfig(Settings):
    """How a PANet adds masks and boxes to a shard set."""

    parts: PartConfig = PartConfig()
    """Boxes and clustering."""
    network: NetworkRunConfig = NetworkRunConfig()
    """How PANet is run."""
    flip: bool = False
    """Masks are cut from the mean of what an image and its mirror image give, for nearly twice the time."""
    min_piece: float = Field(default=0.0, ge=0.0, le=1.0)
    """Pieces of a mask that are smaller than this share of its largest one are dropped: mostly bits of other vehicles.
    A vehicle behind a lamp post is in large pieces."""
    min_foreground: float = Field(default=0.05, ge=0.0, le=1.0)
    """Masks with a smaller share of the image are replaced by an ellipse and flagged."""
    ellipse: float = Field(default=0.9, gt=0.0, le=1.0)
    """Axes of the ellipse as a share of the image's width and height."""


class AddedParts:
    """The enrichment: the refined mask, hard at 0.5, and K ordered boxes for every image."""

    def __init__(self, trained: TrainedModel, run: NetworkRun, config: PartAdditionConfig) -> None:
        """The network travels with the enrichment: workers need no access to the checkpoint.

        Raises:
            ValueError: The checkpoint is not of a PANet.
        """
        if not isinstance(trained.model, PANet):
            raise ValueError(
                f"expected a checkpoint of panet (jobs/train_panet.py), got one of {trained.experiment.task}"
            )
        self._model = trained.model
        self._trained = trained
        self._run = run
        self._config = config

    @property
    def provenance(self) -> Provenance:
        """The checkpoint's hash, and all of the settings that shape masks and boxes."""
        transform = self._trained.experiment.data.transform
        return Provenance(
            name="parts",
            version=f"panet {ALGORITHM_VERSION} {self._trained.checkpoint_hash}",
            settings={
                "parts": self._config.parts.model_dump(mode="json"),
                "attention": self._model.config.attention.model_dump(mode="json"),
                "min_foreground": self._config.min_foreground,
                "ellipse": self._config.ellipse,
                "flip": self._config.flip,
                "min_piece": self._config.min_piece,
                "height": transform.height,
                "width": transform.width,
                "area_above": transform.area_above,
                "trained_on": self._trained.data_hash,
                **self._run.provenance(),
            },
        )

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Additions]:
        """Mask, boxes and what is measured of each image."""
        model = self._model.to(self._run.device)

        def answer(images: Tensor, sizes: NDArray[np.int64], chosen: Sequence[Sample]) -> list[Additions]:
            masks, _, parts = locate_parts(model, images, self._config.parts, flip=self._config.flip)
            return [self._additions(*given) for given in zip(chosen, masks, parts, strict=True)]

        def unreadable(sample: Sample, reason: str) -> Additions:
            mask = ellipse_mask(sample.height, sample.width, self._config.ellipse)
            boxes = uniform_stripes(self._config.parts.num_parts)
            return Additions(mask=encode_mask(mask), boxes=boxes, problem=reason, measures={STRIPES: 1.0})

        return answer_in_batches(samples, self._trained.experiment.data.transform, self._run, answer, unreadable)

    def _additions(self, sample: Sample, probabilities: NDArray[np.float32], parts: PartBoxes) -> Additions:
        mask = refined_mask(probabilities, sample.height, sample.width, min_piece=self._config.min_piece)
        problem = STRIPES if parts.fallback else ""
        if mask.mean() < self._config.min_foreground:
            mask, problem = ellipse_mask(sample.height, sample.width, self._config.ellipse), EMPTY_MASK
        measures = {
            "foreground_share": float(mask.mean()),
            "centres_on_vehicle": centres_inside(parts.boxes, mask),
            STRIPES: float(parts.fallback),
            "channels_used": float((parts.channel_part >= 0).mean()),
        }
        if sample.mask is not None:
            with suppress(UnreadableImageError):  # the old mask is about to be replaced
                measures["iou_with_old_mask"] = intersection_over_union(mask, decode_mask(sample.mask))
        return Additions(mask=encode_mask(mask), boxes=parts.boxes, problem=problem, measures=measures)


class UniformStripes:
    """The enrichment of the ablation (PMANet, Table III): boxes that divide every image; masks stay as they are."""

    def __init__(self, num_parts: int) -> None:
        self._num_parts = num_parts

    @property
    def provenance(self) -> Provenance:
        """The number of stripes."""
        return Provenance(name="stripes", version="1", settings={"num_parts": self._num_parts})

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Additions]:
        """The same boxes for each sample."""
        boxes = uniform_stripes(self._num_parts)
        return (Additions(boxes=boxes) for _ in samples)


def locate_parts(
    model: PANet, images: Tensor, config: PartConfig, *, flip: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[PartBoxes]]:
    """Refined foreground and parts of a batch.

    Args:
        model: In evaluation mode.
        images: (B, 3, H, W) uint8 RGB on the model's device.
        config: Of the boxes.
        flip: As in `PartAdditionConfig`; boxes come from the image as it is.

    Returns:
        (B, H, W) float32 probability of the foreground, (B, C, h, w) attention maps, and the parts of each image.
    """
    with torch.inference_mode():
        logits, attention = model.locate(images)
        probabilities = logits.float().sigmoid()
        if flip:
            probabilities = (probabilities + model.segment(images.flip(-1)).float().sigmoid().flip(-1)) / 2
        # On the maps' cells: at least half of a cell is vehicle.
        cells = F.interpolate((probabilities >= 0.5).float(), attention.shape[2:], mode="area")[:, 0] >= 0.5
    foregrounds, maps = cells.cpu().numpy(), attention.float().cpu().numpy()
    parts = [part_boxes(own, foreground, config) for own, foreground in zip(maps, foregrounds, strict=True)]
    return probabilities[:, 0].cpu().numpy(), maps, parts


def refined_mask(probabilities: NDArray[np.float32], height: int, width: int, *, min_piece: float) -> NDArray[np.uint8]:
    """The mask that a set stores: `hard_mask`, without small pieces where that is asked for."""
    return without_small_pieces(hard_mask(probabilities, height, width), min_piece)


def hard_mask(probabilities: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """(H, W) probabilities of the foreground, resized to (height, width) and cut at 0.5: 1 on the vehicle."""
    shrinks = height < probabilities.shape[0] and width < probabilities.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(probabilities, (width, height), interpolation=interpolation)
    return np.asarray(resized >= 0.5, dtype=np.uint8)


def without_small_pieces(mask: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """A (H, W) 0/1 mask without its pieces (8-connected) of less than a share of the largest one's pixels."""
    if share == 0:
        return mask
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = boxes[:, cv2.CC_STAT_AREA]
    areas[0] = -1  # the background, whatever the share
    return np.asarray((areas >= share * areas.max())[labels], dtype=np.uint8)


def intersection_over_union(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Of two (H, W) 0/1 masks; 1 where both are empty."""
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def centres_inside(boxes: NDArray[np.float32], mask: NDArray[np.uint8]) -> float:
    """Share of the (K, 4) boxes whose centre lies on the foreground of a (H, W) 0/1 mask."""
    height, width = mask.shape
    columns = np.clip((boxes[:, 0] + boxes[:, 2]) / 2 * width, 0, width - 1).astype(np.int64)
    rows = np.clip((boxes[:, 1] + boxes[:, 3]) / 2 * height, 0, height - 1).astype(np.int64)
    return float(mask[rows, columns].mean())
