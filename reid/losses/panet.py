"""PANet's whole loss: identity, triplet and segmentation, over the global batch and in float32."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from reid.contracts import LossTerms, PANetOutput, Settings
from reid.losses.global_batch import gather, gather_with_gradient
from reid.losses.identity import identity_loss
from reid.losses.precision import at_least_float32
from reid.losses.triplet import triplet_loss


class PANetLossConfig(Settings):
    """Weights and margin of PANet's loss (METHOD 2.1)."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target spread evenly over all classes. The paper is silent; this is the value of the baseline that
    it builds the classification branch on (Luo et al. 2019)."""
    triplet_margin: Annotated[float, Field(ge=0)] | Literal["soft"] = 0.7
    """In units of the raw features' Euclidean distance, or "soft" for softplus. The paper gives one margin for both of
    its networks (section IV-B)."""
    identity_weight: float = Field(default=1.0, ge=0)
    """Weight of the identity loss."""
    triplet_weight: float = Field(default=1.0, ge=0)
    """Weight of the triplet loss."""
    segmentation_weight: float = Field(default=1.0, ge=0)
    """Weight of the squared error between mask and coarse mask."""


def panet_loss(output: PANetOutput, labels: Tensor, masks: Tensor, config: PANetLossConfig) -> LossTerms:
    """The training loss of PANet.

    Source: PMANet section III-A. Ours differs: the segmentation loss is the mean squared error (the paper spells its
    "MSE" as "Maximum Squared Error"), and anchors without a triplet are left out of the mean. Triplets are mined over
    the batch of all workers: any number of workers gives the loss and the gradient of one process that holds the whole
    batch.

    Args:
        output: Of the model in training mode, for the B images of this worker.
        labels: (B,) int64 class of each image.
        masks: (B, 1, H, W) uint8 0/1 coarse vehicle foreground; images without one must not be in the batch.
        config: Weights and margin.

    Returns:
        `total` in float32 (float64 for float64 input); the unweighted parts "identity", "segmentation" (means over this
        worker) and "triplet" (global batch); as statistics "valid_anchors/global" and "mask_iou", this worker's mean
        intersection over union of the masks cut at 0.5 with the coarse ones (1 where both are empty).

    Raises:
        ValueError: When the masks have another shape than the output's.
    """
    if masks.shape != output.masks.shape:
        raise ValueError(
            f"masks: expected the shape of the output's, {tuple(output.masks.shape)}, got {tuple(masks.shape)}"
        )
    with torch.autocast(output.features.device.type, enabled=False):
        mask_logits = at_least_float32(output.masks)
        identity = identity_loss(output.logits, labels, config.label_smoothing)
        # Cast before the gather: not every backend sends 16-bit floats, and the amounts are small.
        features = gather_with_gradient(at_least_float32(output.features))
        triplet, anchors = triplet_loss(features, gather(labels), config.triplet_margin)
        segmentation = (mask_logits.sigmoid() - masks).square().mean()
        total = (
            config.identity_weight * identity
            + config.triplet_weight * triplet
            + config.segmentation_weight * segmentation
        )
        return LossTerms(
            total=total,
            parts={
                "identity": identity.detach(),
                "triplet": triplet.detach(),
                "segmentation": segmentation.detach(),
            },
            statistics={
                "valid_anchors/global": anchors.float().mean(),
                "mask_iou": mean_iou(mask_logits.detach() >= 0, masks > 0),
            },
        )


def mean_iou(predicted: Tensor, expected: Tensor) -> Tensor:
    """Mean over the images of intersection over union of two (B, ...) bool masks; 1 where both are empty.

    >>> mean_iou(torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]]))
    tensor(0.3333)
    """
    shared = (predicted & expected).flatten(1).sum(1)
    covered = (predicted | expected).flatten(1).sum(1)
    return torch.where(covered > 0, shared / covered.clamp(min=1), 1.0).mean()
