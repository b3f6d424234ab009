"""Batch-hard triplet loss: mined on a matrix of distances, computed on the pairs that were chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Margin = float | Literal["soft"]


@dataclass(frozen=True, slots=True)
class Triplets:
    """The hardest positive and negative of every anchor; leading dimensions are independent groups (planes)."""

    positives: Tensor
    """(..., N) int64 row of the farthest row of the same identity; meaningless where not valid."""
    negatives: Tensor
    """(..., N) int64 row of the nearest row of another identity; meaningless where not valid."""
    valid: Tensor
    """(..., N) bool: the anchor has both."""


def triplet_loss(features: Tensor, labels: Tensor, margin: Margin) -> tuple[Tensor, Tensor]:
    """Batch-hard triplet loss on Euclidean distances of the features as they are.

    Source: Hermans et al., "In defense of the triplet loss" (2017), Eq. 5, as PPT section 3.2 uses it. Ours differs: an
    anchor without another image of its identity, or without any other identity, counts neither in the sum nor in the
    mean.

    Args:
        features: (N, D), any floating dtype; computed at least in float32.
        labels: (N,) int64 identity of each row.
        margin: Hinge max(0, d_ap - d_an + margin) in units of the distance, or "soft": log(1 + exp(d_ap - d_an)).

    Returns:
        The mean over the valid anchors (0 with a graph when there is none), and (N,) bool, the valid anchors.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        triplets = hardest_triplets(features, labels)
        weights = triplets.valid.to(features.dtype) / triplets.valid.sum().clamp(min=1)
        return weighted_violations(features, triplets, weights, margin), triplets.valid


@torch.no_grad()
def hardest_triplets(features: Tensor, labels: Tensor, shown: Tensor | None = None) -> Triplets:
    """Mine the farthest positive and the nearest negative of each row among the rows shown.

    Distances come from one matrix product. The first row is subtracted from all: features after a ReLU have a large
    common part, which would cancel in |x|^2 + |y|^2 - 2xy and blur the order of near-duplicates.

    Args:
        features: (..., N, D) float32 or float64.
        labels: (N,) identity of each row, the same for all groups.
        shown: (..., N) bool, rows that may be anchor, positive or negative; None: all.
    """
    shifted = features - features[..., :1, :]
    products = shifted @ shifted.mT  # (..., N, N)
    # Squared distance less the anchor's own squared norm: the same order within a row.
    cost = torch.sub(products.diagonal(dim1=-2, dim2=-1)[..., None, :], products, alpha=2)
    cost.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)  # an image is not its own positive

    is_positive = labels[:, None] == labels
    is_negative = ~is_positive
    if shown is not None:
        is_positive, is_negative = is_positive & shown[..., None, :], is_negative & shown[..., None, :]
    farthest, positives = torch.where(is_positive, cost, -torch.inf).max(-1)
    nearest, negatives = torch.where(is_negative, cost, torch.inf).min(-1)
    # Not-a-number features stay valid anchors, so that the loss shows them.
    valid = (farthest != -torch.inf) & (nearest != torch.inf)
    return Triplets(positives, negatives, valid if shown is None else valid & shown)


def weighted_violations(features: Tensor, triplets: Triplets, weights: Tensor, margin: Margin) -> Tensor:
    """Sum over anchors of weight times hinge (or softplus) of the gap d_ap - d_an, a scalar with a graph.

    The distances are computed anew by subtraction, so they are exact for near-duplicates, and only the 2N chosen pairs
    are touched instead of N^2. The gradient of a distance of 0 is 0.

    Args:
        features: (..., N, D) float32 or float64.
        triplets: Of the same rows.
        weights: (..., N) of each anchor; 0 where it is not valid.
        margin: As for `triplet_loss`.
    """
    loss = _WeightedViolations.apply(features, triplets.positives, triplets.negatives, weights, margin)
    assert isinstance(loss, Tensor)
    return loss


class _WeightedViolations(torch.autograd.Function):
    """The gradient is computed in forward, where the differences of the pairs are at hand and can be overwritten."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, positives: Tensor, negatives: Tensor, weights: Tensor, margin: Margin
    ) -> Tensor:
        num_rows, dim = features.shape[-2:]
        rows, weights = features.reshape(-1, dim), weights.reshape(-1)
        partners = torch.stack((positives, negatives))  # (2, ..., N)
        if features.ndim > 2:
            partners = partners + torch.arange(0, len(rows), num_rows, device=rows.device).view(*features.shape[:-2], 1)
        partners = partners.flatten()
        differences = rows.index_select(0, partners).view(2, -1, dim).sub_(rows)  # partner - row
        distances = torch.linalg.vector_norm(differences, dim=-1)  # (2, rows)
        gaps = distances[0] - distances[1]
        violations = F.softplus(gaps) if margin == "soft" else F.relu(gaps + margin)
        # Weight 0 silences anchors without a triplet even where their numbers are not finite.
        loss = torch.where(weights > 0, weights * violations, 0.0).sum()
        if ctx.needs_input_grad[0]:
            slopes = weights * (gaps.sigmoid() if margin == "soft" else violations > 0)
            slopes = (slopes / distances).masked_fill_(distances == 0, 0.0)
            slopes[0].neg_()
            # Moving the row away from its positive raises the loss: the row gets what its partners lose.
            differences *= slopes[..., None]
            gradient = torch.add(differences[0], differences[1])
            gradient.index_add_(0, partners, differences.view(-1, dim), alpha=-1)
            ctx.save_for_backward(gradient.view(features.shape))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None, None, None
