"""PPT's whole loss: identity, global triplet and planes, over the global batch and in float32."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from reid.contracts import LossTerms, PPTOutput, Settings
from reid.losses.global_batch import gather, gather_with_gradient
from reid.losses.identity import identity_loss
from reid.losses.precision import at_least_float32
from reid.losses.triplet import triplet_loss
from reid.losses.visible_triplet import VisibleTripletConfig, planes_loss


class PPTLossConfig(Settings):
    """Weights and margins of PPT's loss (METHOD 1.4, Eq. 6 of the paper)."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target spread evenly over all classes."""
    triplet_margin: Annotated[float, Field(ge=0)] | Literal["soft"] = 0.3
    """Of the global triplet, in units of the raw features' Euclidean distance, or "soft" for softplus."""
    identity_weight: float = Field(default=1.0, ge=0)
    """Weight of the identity loss."""
    triplet_weight: float = Field(default=1.0, ge=0)
    """Weight of the global triplet loss."""
    planes_weight: float = Field(default=1.0, ge=0)
    """Weight of the local loss; no effect when the model's local branch is off."""
    planes: VisibleTripletConfig = VisibleTripletConfig()
    """The local loss."""


def ppt_loss(output: PPTOutput, labels: Tensor, config: PPTLossConfig) -> LossTerms:
    """The training loss of PPT.

    Source: PPT Eq. 6. Triplets are mined over the batch of all workers: features are gathered with gradient, so any
    number of workers gives the loss and the gradient of one process that holds the whole batch.

    Args:
        output: Of the model in training mode, for the B images of this worker.
        labels: (B,) int64 class of each image.
        config: Weights and margins.

    Returns:
        `total` in float32 (float64 for float64 input), the unweighted parts "identity" (mean over this worker),
        "triplet" and "planes" (global batch), and the share of valid anchors, "valid_anchors/global" and
        "valid_anchors/<plane>".
    """
    with torch.autocast(output.features.device.type, enabled=False):
        identity = identity_loss(output.logits, labels, config.label_smoothing)
        # Cast before the gather: not every backend sends 16-bit floats, and the amounts are small.
        features = gather_with_gradient(at_least_float32(output.features))
        triplet, anchors = triplet_loss(features, gather(labels), config.triplet_margin)
        total = config.identity_weight * identity + config.triplet_weight * triplet
        parts = {"identity": identity.detach(), "triplet": triplet.detach()}
        statistics = {"valid_anchors/global": anchors.float().mean()}
        if output.plane_features is not None:
            assert output.plane_visible is not None
            planes, anchor_shares = planes_loss(output.plane_features, output.plane_visible, labels, config.planes)
            total = total + config.planes_weight * planes
            parts["planes"] = planes.detach()
            statistics |= anchor_shares
        return LossTerms(total=total, parts=parts, statistics=statistics)
