"""PANet's whole loss: identity, triplet and segmentation, over the global batch and in float32."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from reid.contracts import LossTerms, PANetOutput, Settings
from reid.losses.global_batch import gather, gather_with_gradient, own_rows
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
    trusted_masks: float = Field(default=1.0, gt=0, le=1)
    """Share of the global batch's images whose coarse masks are learned from: those that overlap best with what the
    network draws itself. GrabCut fails by image, so what the others show it draws right; 1: all, as in the paper."""
    trusted_from_epoch: int = Field(default=0, ge=0)
    """Epoch (0-based) from which masks are chosen; before it the network learns from all to draw anything at all."""


def panet_loss(
    output: PANetOutput, labels: Tensor, masks: Tensor, config: PANetLossConfig, epoch: int = 0
) -> LossTerms:
    """The training loss of PANet.

    Source: PMANet section III-A. Ours differs: the segmentation loss is the mean squared error (the paper spells its
    "MSE" as "Maximum Squared Error"), anchors without a triplet are left out of the mean, and masks that are not
    trusted from that of the segmentation loss (an option; the idea is the small-loss trick of Han et al.,
    "Co-teaching", 2018, by overlap in the place of loss). Triplets are mined, and masks chosen, over the batch of all
    workers: any number of workers gives the loss and the gradient of one process that holds the whole batch.

    Args:
        output: Of the model in training mode, for the B images of this worker.
        labels: (B,) int64 class of each image.
        masks: (B, 1, H, W) uint8 0/1 coarse vehicle foreground; images without one must not be in the batch.
        config: Weights and margin.
        epoch: 0-based; decides whether masks are chosen.

    Returns:
        `total` in float32 (float64 for float64 input); the unweighted parts "identity", "segmentation" (means over this
        worker; of chosen masks, its share in the mean of all workers) and "triplet" (global batch); as statistics
        "valid_anchors/global" and "mask_iou", this worker's mean intersection over union of the masks cut at 0.5 with
        the coarse ones (1 where both are empty), trusted or not.

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
        overlaps = mask_overlaps(mask_logits.detach() >= 0, masks > 0)
        errors = (mask_logits.sigmoid() - masks).square().flatten(1).mean(1)
        if config.trusted_masks < 1 and epoch >= config.trusted_from_epoch:
            errors = errors * trust(overlaps, config.trusted_masks)
        segmentation = errors.mean()
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
                "mask_iou": overlaps.mean(),
            },
        )


def mask_overlaps(predicted: Tensor, expected: Tensor) -> Tensor:
    """(B,) intersection over union of two (B, ...) bool masks; 1 where both are empty.

    >>> mask_overlaps(torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]]))
    tensor([0.3333])
    """
    shared = (predicted & expected).flatten(1).sum(1)
    covered = (predicted | expected).flatten(1).sum(1)
    return torch.where(covered > 0, shared / covered.clamp(min=1), 1.0)


def trust(overlaps: Tensor, share: float) -> Tensor:
    """(B,) weights of this worker's images: 0 for masks that are not trusted, and the same for all others.

    Trusted are the `share` of all workers' images, rounded and at least one, with the largest overlaps; of equal ones
    the first. The weights of all workers together have a mean of 1.

    Args:
        overlaps: (B,) of this worker's masks with the network's.
        share: 0..1.
    """
    everyone = gather(overlaps)
    count = max(1, round(share * len(everyone)))
    weights = torch.zeros_like(everyone)
    weights[everyone.sort(descending=True, stable=True).indices[:count]] = len(everyone) / count
    return own_rows(weights)
