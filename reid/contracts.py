"""Everything that crosses a folder: one definition for each thing that flows through the system.

Raw images become a `Record`; shards deliver a `Batch`; a model answers with a `PPTOutput`, a `PANetOutput`, a
`PMNetOutput` or, the keypoint detector, with a `HeatMapOutput`; a loss with `LossTerms`; an epoch of training ends in
an `EpochResult`; evaluation works on `Embeddings`.

Convention: points are `(x, y)` in pixels with pixel centres at integers; images are RGB; `B` counts the images of one
worker, `P x K` those of the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from torch import Tensor

Split = Literal["train", "query", "gallery", "test"]
"""`test` is for protocols that draw query and gallery themselves (VehicleID)."""


class DataError(ValueError):
    """A data set that cannot be used as it is; the text says what, where and how to mend it."""


class Settings(BaseModel):
    """Base of all configuration: frozen, unknown keys refused, the docstring under a field is its description."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """True is not 1: a switch in the place of a number is a slip."""
        if isinstance(value, bool) and not _admits_truth(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("true and false are not expected here")
        return value


def _admits_truth(annotation: Any) -> bool:
    """Whether a field's type names bool, or nothing in particular."""
    return annotation in (Any, bool) or any(map(_admits_truth, get_args(annotation)))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{dotted key: value}`; an empty section is a value.

    >>> flatten({"loss": {"triplet": {"margin": 0.3}, "parts": {}}, "seed": 0})
    {'loss.triplet.margin': 0.3, 'loss.parts': {}, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One raw image of a data set and what its release says about it."""

    key: str
    """Name of the image without its ending, unique within its split: `[A-Za-z0-9_-]{1,128}` (no dots: tar members are
    split there)."""
    path: Path
    """The raw image file."""
    split: Split
    vehicle_id: str
    """Identity as the data set writes it."""
    camera_id: str | None = None
    """Camera as the data set writes it; None when unknown (then no junk is removed in evaluation)."""
    timestamp: str | None = None
    keypoints: NDArray[np.float32] | None = None
    """(20, 3) x, y in raw-image pixels and visibility 0/1; None when the image was never annotated."""
    orientation: int | None = None
    """0 front, 1 rear, 2 left, 3 left-front, 4 left-rear, 5 right, 6 right-front, 7 right-rear."""
    subsets: tuple[str, ...] = ()
    """Sizes of a nested benchmark that contain this image, such as ("small", "medium", "large"); empty: all."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Colour, type, model ... as text; carried along, never used in training."""
    mask_path: Path | None = None
    """Foreground mask image (0 background, 255 vehicle) of the same size, where a data set has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The images of one worker in one step, in the order of the batch plan."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB; normalised on the device, inside the model."""
    labels: Tensor
    """(B,) int64 class 0..C-1 in training; -1 where the split has no classes."""
    samples: Tensor
    """(B,) int64 row of each image in the index."""
    keypoints: Tensor
    """(B, 20, 3) float32 x, y in pixels of `images` and visibility 0/1."""
    masks: Tensor | None = None
    """(B, 1, H, W) uint8 0/1 vehicle foreground, when the shards hold masks and the run asks for them."""
    boxes: Tensor | None = None
    """(B, K, 4) float32 part boxes from top to bottom: left, top, right, bottom as shares 0..1 of the width and height
    of `images`, when the run asks for them."""

    def to(
        self,
        device: torch.device,
        *,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> Batch:
        """The same batch on `device`, with images in `memory_format`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking, memory_format=memory_format),
            labels=self.labels.to(device, non_blocking=non_blocking),
            samples=self.samples,
            keypoints=self.keypoints.to(device, non_blocking=non_blocking),
            masks=None if self.masks is None else self.masks.to(device, non_blocking=non_blocking),
            boxes=None if self.boxes is None else self.boxes.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PPTOutput:
    """What PPT's network gives in training (METHOD 1.3). All in the autocast dtype of the run; losses cast to
    float32.
    """

    features: Tensor
    """(B, C) pooled features before the BNNeck: metric losses."""
    logits: Tensor
    """(B, num_classes) of the bias-free classifier after the BNNeck."""
    plane_features: Tensor | None
    """(B, 4, C) average of each warped plane (front, back, side, top), zero where invisible; None: branch off."""
    plane_visible: Tensor | None
    """(B, 4) bool."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMapOutput:
    """What the keypoint detector gives (METHOD 1.6), in the autocast dtype of the run; losses cast to float32."""

    maps: Tensor
    """(B, stacks, 20, h, w) heat maps; the last stack's are the prediction. Trained towards peaks of height 1."""
    stride: int
    """Pixels of the image per cell: image x lies at column (x + 0.5) / stride - 0.5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PANetOutput:
    """What PANet gives in training (METHOD 2.1), in the autocast dtype of the run; losses cast to float32."""

    features: Tensor
    """(B, C) pooled features before the BNNeck: metric losses."""
    logits: Tensor
    """(B, num_classes) of the bias-free classifier after the BNNeck."""
    masks: Tensor
    """(B, 1, H, W) logits of the vehicle foreground, of the images' size; their sigmoid is the mask, >= 0 is vehicle.
    """


PMNET_IDENTITY_LOSSES: Final = ("global", "main_sum", "partial_sum", "main", "partial")
"""PMNet's five identity losses, in the order of their weights; in the paper's letters f_g, f_M, f_P, g, h."""

LOG_VARIANCE_BOUNDS: Final = (-4.0, 4.0)
"""Learned log variances count as if they lay in here (METHOD 2.2): the weight of a loss is at most exp(4) = 54.6."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartTaskOutput:
    """What one of PMNet's two tasks, main or partial, gives in its K branches."""

    features: Tensor
    """(B, K, D) pooled features of each branch before its BNNeck. Flattened to (B, K * D) they are the concatenation
    that the paper calls g (main) or h (partial), before its own BNNeck."""
    logits: Tensor
    """(B, K, num_classes) of each branch's classifier; their sum over the branches is the paper's f_M or f_P."""
    joined_logits: Tensor
    """(B, num_classes) of the classifier of the concatenation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PMNetOutput:
    """What PMNet gives in training (METHOD 2.2), in the autocast dtype of the run; losses cast to float32."""

    features: Tensor | None
    """(B, C) pooled features of the global head before its BNNeck, the paper's f_g; None: head off."""
    logits: Tensor | None
    """(B, num_classes) of the global head's classifier; None: head off."""
    main: PartTaskOutput | None
    """Main tasks, which see the whole map; None: off."""
    partial: PartTaskOutput | None
    """Partial tasks, which see one part each; None: off."""
    log_variances: Tensor | None
    """(5,) float32, the parameter itself: log(sigma^2) of each of `PMNET_IDENTITY_LOSSES`, also of those whose task is
    off; None: the weights of the losses are not learned."""
    plane_features: Tensor | None = None
    """(B, 4, C) average of each warped plane of the global head's last stage; None: PPT's planes are off."""
    plane_visible: Tensor | None = None
    """(B, 4) bool, as of `PPTOutput`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """A loss and what it is made of."""

    total: Tensor
    """Scalar float32 with a graph; its average over the workers has the gradient of the global batch."""
    parts: Mapping[str, Tensor]
    """Unweighted parts by name ("identity", "triplet", "planes"): detached float32 scalars, each the global-batch
    value or a per-worker mean whose average over workers is the global value."""
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """Other detached scalars worth logging, such as "valid_anchors/front" (share of the global batch, 0..1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalResult:
    """What the training loop yields between epoch ends: one row of the log."""

    epoch: int
    """0-based."""
    step: int
    """Batches consumed since the beginning of the run."""
    step_in_epoch: int
    """Batches of this epoch consumed."""
    steps_in_epoch: int
    metrics: Mapping[str, float]
    """Means since the last row, over all workers; the same names as in `EpochResult`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochResult:
    """What the training loop yields: at the end of each epoch and at each checkpoint inside one."""

    epoch: int
    """The epoch just trained (0-based), or being trained when `finished_epoch` is False."""
    step: int
    """Batches consumed since the beginning of the run."""
    finished_epoch: bool
    metrics: Mapping[str, float]
    """Means since the last result: loss parts, learning rate, gradient norm, images per second, data waiting share
    ..."""
    checkpoint: str | None = None
    """Name of the checkpoint that was committed at this point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """Retrieval features of a set of images, one row each."""

    features: NDArray[np.float32]
    """(N, D), L2-normalised."""
    vehicle_ids: NDArray[np.int64]
    """(N,) identity code; the same vehicle has the same code in query and gallery."""
    camera_ids: NDArray[np.int64]
    """(N,) camera code; -1 when unknown."""
    samples: NDArray[np.int64]
    """(N,) row of each image in the index."""

    def __len__(self) -> int:
        return len(self.samples)
