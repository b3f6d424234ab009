"""Batch-hard triplet loss: mined on a matrix of distances, computed on the pairs that were chosen."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from reid.losses.precision import at_least_float32
from reid.products import row_products

Margin = float | Literal["soft"]


class Triplets(NamedTuple):
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
    return grouped_triplet_loss(features, labels, margin)


def grouped_triplet_loss(
    features: Tensor,
    labels: Tensor,
    margin: Margin,
    shown: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, Tensor]:
    """Batch-hard triplet loss of each group of rows on its own.

    Args:
        features: (..., N, D), any floating dtype; computed at least in float32.
        labels: (N,) identity of each row, the same for all groups.
        margin: As for `triplet_loss`.
        shown: (..., N) bool, rows that may be anchor, positive or negative; None: all.
        reduction: Over the valid anchors of a group.

    Returns:
        (...) the loss of each group (0 with a graph when it has no valid anchor), and (..., N) bool, the valid anchors.
    """
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):
            return grouped_triplet_loss(features, labels, margin, shown, reduction)
    features = at_least_float32(features)
    losses, valid = _BatchHard.apply(features, labels, shown, margin, reduction)
    return losses, valid


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
    products = row_products(shifted, shifted)  # (..., N, N)
    # Squared distance less the anchor's own squared norm: the same order within a row.
    cost = torch.sub(products.diagonal(dim1=-2, dim2=-1).unsqueeze(-2), products, alpha=2)

    same_identity = labels.unsqueeze(-1) == labels
    positive_cost = cost.where(same_identity, -torch.inf)
    positive_cost.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)  # an image is not its own positive
    negative_cost = cost.masked_fill_(same_identity, torch.inf)
    if shown is not None:
        hidden = ~shown.unsqueeze(-2)
        positive_cost.masked_fill_(hidden, -torch.inf)
        negative_cost.masked_fill_(hidden, torch.inf)
    farthest, positives = positive_cost.max(-1)
    nearest, negatives = negative_cost.min(-1)
    # -inf where either is missing. Not-a-number features stay valid anchors, so that the loss shows them.
    valid = farthest.sub_(nearest) != -torch.inf
    return Triplets(positives, negatives, valid if shown is None else valid.logical_and_(shown))


class _BatchHard(torch.autograd.Function):
    """Mining, loss and gradient in one node: a batch of 64 pays for the number of operations as much as for their size.

    The distances are computed anew by subtraction, so they are exact for near-duplicates, and only the 2N chosen pairs
    are touched instead of N^2. The gradient of a distance of 0 is 0. It is computed in forward, where the differences
    of the pairs are at hand and can be overwritten. No tensor of pairs is larger than the features: a core's cache
    holds few.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        labels: Tensor,
        shown: Tensor | None,
        margin: Margin,
        reduction: Literal["mean", "sum"],
    ) -> tuple[Tensor, Tensor]:
        positives, negatives, valid = hardest_triplets(features, labels, shown)
        ctx.mark_non_differentiable(valid)
        ctx.set_materialize_grads(False)  # saves a tensor of zeros for `valid`
        num_rows, dim = features.shape[-2:]
        rows = features.reshape(-1, dim)  # of all groups
        positives, negatives = positives.view(-1), negatives.view(-1)
        if len(rows) > num_rows:
            first_rows = torch.arange(0, len(rows), num_rows, device=rows.device).repeat_interleave(num_rows)
            positives, negatives = positives + first_rows, negatives + first_rows
        to_positives = rows.index_select(0, positives).sub_(rows)
        to_negatives = rows.index_select(0, negatives).sub_(rows)
        positive_distances = torch.linalg.vector_norm(to_positives, dim=-1, keepdim=True)
        negative_distances = torch.linalg.vector_norm(to_negatives, dim=-1, keepdim=True)

        gaps = (positive_distances - negative_distances).view(valid.shape)
        violations = F.softplus(gaps) if margin == "soft" else gaps.add_(margin).relu_()
        # Filled, not multiplied: silences anchors without a triplet even where their numbers are not finite.
        violations.masked_fill_(~valid, 0.0)
        losses = violations.sum(-1)
        num_valid = valid.sum(-1, keepdim=True).clamp_(min=1) if reduction == "mean" else None
        if num_valid is not None:
            losses.div_(num_valid.squeeze(-1))

        if ctx.needs_input_grad[0]:
            # The derivative of softplus is 1 - exp(-softplus); both are 0 for a silenced anchor.
            slopes = violations.neg().expm1_().neg_() if margin == "soft" else violations.sign()
            if num_valid is not None:
                slopes.div_(num_valid)
            slopes = slopes.view(-1, 1)
            # At distance 0 the difference is 0 too: any finite slope gives 0.
            least = torch.finfo(slopes.dtype).tiny ** 0.5
            pulls = to_positives.mul_(slopes / positive_distances.clamp_(min=least))
            pushes = to_negatives.mul_(slopes / negative_distances.clamp_(min=least))
            # The loss falls as a row moves along its pull and against its push, and its partners the other way round.
            gradient = pushes - pulls
            gradient.index_add_(0, positives, pulls)
            gradient.index_add_(0, negatives, pushes, alpha=-1)
            ctx.save_for_backward(gradient.view(features.shape))
        return losses, valid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scales: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None, None]:
        if scales is None:
            return None, None, None, None, None
        (gradient,) = ctx.saved_tensors
        return gradient * scales.view(*scales.shape, 1, 1), None, None, None, None
