"""PMNet's whole loss: five identity losses with learned weights, three triplets and part transfer, in float32.

In the combination of both methods also PPT's loss of the planes.

Every term is that of the global batch: the workers exchange features, distances and the five values of the identity
losses, and all hold the same total.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.autograd.function import once_differentiable

from reid.contracts import LOG_VARIANCE_BOUNDS, PMNET_IDENTITY_LOSSES, LossTerms, PMNetOutput, Settings
from reid.losses.global_batch import gather, gather_with_gradient
from reid.losses.identity import identity_loss
from reid.losses.precision import at_least_float32
from reid.losses.triplet import triplet_loss
from reid.losses.visible_triplet import VisibleTripletConfig, planes_loss

IdentityLoss = Literal["global", "main_sum", "partial_sum", "main", "partial"]
TripletLoss = Literal["global", "main", "partial"]
Weight = Annotated[float, Field(ge=0)]


class PMNetLossConfig(Settings):
    """Weights and margins of PMNet's loss (METHOD 2.2, Eq. 8 of PMANet)."""

    identity_losses: tuple[IdentityLoss, ...] = PMNET_IDENTITY_LOSSES
    """Which cross-entropies are taken (Table VI takes fewer): of f_g, of the summed logits of the main and of the
    partial tasks, of g and of h. Those of heads that the model does not have fall away."""
    triplet_losses: tuple[TripletLoss, ...] = ("global", "main", "partial")
    """Which triplets are taken: of f_g, g and h, as for `identity_losses`."""
    branch_logits: Literal["sum", "each"] = "sum"
    """What the identity losses of f_M and f_P see of the K branches. sum: their summed logits (Eq. 4). each: every
    branch's own, the mean of K losses (Table VI without summation; the paper does not say what it put there)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes. The paper's learned weights exclude any (METHOD 2.2)."""
    uncertainty_from_epoch: int | None = Field(default=0, ge=0)
    """Epoch (0-based) from which the weights of the identity losses are learned (HUL, Eq. 7; Table VII also tries 30).
    null: never, for a model with learned_loss_weights false."""
    fixed_weights: tuple[Weight, Weight, Weight, Weight, Weight] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Weights of the identity losses of f_g, f_M, f_P, g and h before `uncertainty_from_epoch`, or throughout."""
    triplet_margin: Annotated[float, Field(ge=0)] | Literal["soft"] = 0.7
    """In units of the raw features' Euclidean distance, or "soft" for softplus."""
    triplet_weight: float = Field(default=1.0, ge=0)
    """Weight of each triplet loss."""
    part_transfer_margin: float = Field(default=0.05, ge=0)
    """Gamma of Eq. 3: mean distance of g and h, both of length 1, that costs nothing."""
    part_transfer_weight: float = Field(default=1.0, ge=0)
    """Weight of the part transfer loss; 0 turns it off (Table V)."""
    planes_weight: float = Field(default=1.0, ge=0)
    """Weight of PPT's local loss; no effect when the model's planes are off."""
    planes: VisibleTripletConfig = VisibleTripletConfig()
    """PPT's local loss, for the combination of both methods."""
    part_transfer_moves: Literal["both", "main"] = "both"
    """both: main and partial tasks pull each other closer, as the paper says. main: the partial tasks teach and do not
    give way."""

    @model_validator(mode="after")
    def _refuse_what_makes_no_sense(self) -> Self:
        for name in ("identity_losses", "triplet_losses"):
            chosen = getattr(self, name)
            if len(set(chosen)) != len(chosen):
                raise ValueError(f"{name}: expected each name once, got {list(chosen)}")
        if self.uncertainty_from_epoch is not None and not self.identity_losses:
            raise ValueError(
                "identity_losses is empty, so there is no weight to learn: set uncertainty_from_epoch to null"
            )
        if self.uncertainty_from_epoch == 0 and self.fixed_weights != type(self).model_fields["fixed_weights"].default:
            raise ValueError(
                f"fixed_weights {self.fixed_weights} have no effect when weights are learned from epoch 0: remove them,"
                " or set uncertainty_from_epoch to null (never) or to a later epoch"
            )
        return self


def fixed_weights_at(config: PMNetLossConfig, epoch: int) -> tuple[float, ...] | None:
    """The weights of the five identity losses in an epoch (0-based); None: they are learned.

    >>> config = PMNetLossConfig(uncertainty_from_epoch=30, fixed_weights=(2, 1, 1, 1, 1))
    >>> fixed_weights_at(config, 29), fixed_weights_at(config, 30)
    ((2.0, 1.0, 1.0, 1.0, 1.0), None)
    """
    if config.uncertainty_from_epoch is not None and epoch >= config.uncertainty_from_epoch:
        return None
    return config.fixed_weights


def pmnet_loss(output: PMNetOutput, labels: Tensor, config: PMNetLossConfig, epoch: int) -> LossTerms:
    """The training loss of PMNet.

    Source: PMANet Eq. 3-8. Ours differs: batch means and triplets are those of all workers together, so any number of
    workers gives the loss and the gradient of one process that holds the whole batch; anchors without a triplet are
    left out of the mean; log variances are bounded.

    Args:
        output: Of the model in training mode, for the B images of this worker.
        labels: (B,) int64 class of each image.
        config: Weights and margins.
        epoch: Being trained, 0-based; decides between fixed and learned weights, see `fixed_weights_at`.

    Returns:
        `total` in float32 (float64 for float64 input), the unweighted parts "identity/<name>", "triplet/<name>",
        "part_transfer" (behind the hinge) and "planes" (the combination with PPT), all of the global batch; as
        statistics the weights of the identity losses, "weight/<name>", the share of valid anchors,
        "valid_anchors/<name or plane>", and "part_distance", the mean distance
        between g and h before the hinge.

    Raises:
        ValueError: When the config learns weights and the model has no log variances, or the other way round; when no
            term is left.
    """
    if (output.log_variances is None) != (config.uncertainty_from_epoch is None):
        raise ValueError(
            f"uncertainty_from_epoch is {config.uncertainty_from_epoch}, but the model has"
            f" {'no' if output.log_variances is None else 'learned'} loss weights: set the model's"
            " learned_loss_weights to true and uncertainty_from_epoch to an epoch, or to false and null"
        )
    with torch.autocast(labels.device.type, enabled=False):
        logits, features = _logits(output, config), _features(output)
        parts: dict[str, Tensor] = {}
        statistics: dict[str, Tensor] = {}
        terms = []
        if logits:
            local = torch.stack([_identity(rows, labels, config.label_smoothing) for rows in logits.values()])
            # Of all workers: whether a log variance is held at its bound must not depend on one worker's images.
            losses = gather_with_gradient(local.unsqueeze(0)).mean(0)
            weighted, weights = _weighted(losses, list(logits), output.log_variances, fixed_weights_at(config, epoch))
            terms.append(weighted)
            parts |= {f"identity/{name}": loss for name, loss in zip(logits, losses.detach(), strict=True)}
            statistics |= {f"weight/{name}": weight for name, weight in zip(logits, weights, strict=True)}
        all_labels = gather(labels)
        for name in (name for name in config.triplet_losses if name in features):
            triplet, anchors = triplet_loss(gather_with_gradient(features[name]), all_labels, config.triplet_margin)
            terms.append(config.triplet_weight * triplet)
            parts[f"triplet/{name}"] = triplet.detach()
            statistics[f"valid_anchors/{name}"] = anchors.float().mean()
        if config.part_transfer_weight > 0 and {"main", "partial"} <= features.keys():
            partial = features["partial"] if config.part_transfer_moves == "both" else features["partial"].detach()
            distance = gather_with_gradient(part_distances(features["main"], partial)).mean()
            transfer = (distance - config.part_transfer_margin).relu()
            terms.append(config.part_transfer_weight * transfer)
            parts["part_transfer"] = transfer.detach()
            statistics["part_distance"] = distance.detach()
        if output.plane_features is not None:
            assert output.plane_visible is not None
            planes, anchor_shares = planes_loss(output.plane_features, output.plane_visible, labels, config.planes)
            terms.append(config.planes_weight * planes)
            parts["planes"] = planes.detach()
            statistics |= anchor_shares
        if not terms:
            raise ValueError(
                f"no loss is left: identity_losses {list(config.identity_losses)} and triplet_losses"
                f" {list(config.triplet_losses)} name no head that the model has"
            )
        # Classifiers that no loss uses have a gradient, of 0: workers that average gradients wait for all of them.
        idle = _unused_logits(output, config)
        if output.log_variances is not None and not logits:
            idle.append(output.log_variances)
        unused = sum((0 * values.sum() for values in idle), start=torch.zeros_like(terms[0]))
        return LossTerms(total=torch.stack(terms).sum() + unused, parts=parts, statistics=statistics)


def uncertainty_weighted(losses: Tensor, log_variances: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of losses under learned weights: exp(-s) * loss + s / 2 each, s being the log variance.

    Source: PMANet Eq. 7 with s = log(sigma^2). For a loss that stays at L the best s is log(2 L), its weight 1 / (2 L).
    Ours differs: s counts as if it lay within `LOG_VARIANCE_BOUNDS`; at a bound it gets no gradient that would push it
    further out, but still the one that brings it back.

    Args:
        losses: (n,) of the global batch, float32 or float64.
        log_variances: (n,) floating.

    Returns:
        The scalar sum, and (n,) the weights, detached.

    >>> uncertainty_weighted(torch.tensor([2.0, 3.0]), torch.zeros(2))
    (tensor(5.), tensor([1., 1.]))
    """
    bounded = _Bounded.apply(log_variances.to(losses.dtype), *LOG_VARIANCE_BOUNDS)
    weights = (-bounded).exp()
    return (weights * losses + bounded / 2).sum(), weights.detach()


def part_distances(main: Tensor, partial: Tensor) -> Tensor:
    """Euclidean distances of two features of each image, both normalised: the norms inside Eq. 3 of PMANet.

    Args:
        main: (B, D) concatenated features g, float32 or float64.
        partial: (B, D) h likewise. A row of zeros (no foreground in any box) stays one and is 1 away.

    Returns:
        (B,) in 0..2; equal directions have gradient 0.
    """
    distances: Tensor = torch.linalg.vector_norm(_normalised(main) - _normalised(partial), dim=1)
    return distances


def _features(output: PMNetOutput) -> dict[str, Tensor]:
    """(B, D) pre-BNNeck features f_g, g and h, as far as the model has them, at least in float32."""
    found: dict[str, Tensor] = {}
    if output.features is not None:
        found["global"] = at_least_float32(output.features)
    if output.main is not None:
        found["main"] = at_least_float32(output.main.features).flatten(1)
    if output.partial is not None:
        found["partial"] = at_least_float32(output.partial.features).flatten(1)
    return found


def _unused_logits(output: PMNetOutput, config: PMNetLossConfig) -> list[Tensor]:
    """Logits of the classifiers whose identity loss is not taken."""
    found: dict[str, Tensor] = {}
    if output.logits is not None:
        found["global"] = output.logits
    for name, task in (("main", output.main), ("partial", output.partial)):
        if task is not None:
            found |= {f"{name}_sum": task.logits, name: task.joined_logits}
    return [logits for name, logits in found.items() if name not in config.identity_losses]


def _logits(output: PMNetOutput, config: PMNetLossConfig) -> dict[str, Tensor]:
    """Logits of the identity losses that are wanted and there, in the order of the weights.

    They are (B, num_classes), or (B, K, num_classes) where each branch is on its own.
    """
    found: dict[str, Tensor] = {}
    if output.logits is not None:
        found["global"] = output.logits
    for name, task in (("main", output.main), ("partial", output.partial)):
        if task is not None:
            logits = at_least_float32(task.logits)
            found[f"{name}_sum"] = logits.sum(1) if config.branch_logits == "sum" else logits
            found[name] = task.joined_logits
    return {name: found[name] for name in PMNET_IDENTITY_LOSSES if name in found and name in config.identity_losses}


def _identity(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """The identity loss of (B, num_classes) logits, or its mean over the branches of (B, K, num_classes) ones."""
    if logits.ndim == 2:
        return identity_loss(logits, labels, label_smoothing)
    return identity_loss(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]), label_smoothing)


def _weighted(
    losses: Tensor, names: list[str], log_variances: Tensor | None, fixed: tuple[float, ...] | None
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the losses and the weights."""
    places = [PMNET_IDENTITY_LOSSES.index(name) for name in names]
    if fixed is None:
        assert log_variances is not None
        return uncertainty_weighted(losses, log_variances[places])
    weights = losses.new_tensor([fixed[place] for place in places])
    total = (weights * losses).sum()
    # Weights to be learned later have a gradient, of 0: workers that average gradients wait for every parameter's.
    return total if log_variances is None else total + 0 * log_variances.sum(), weights


def _normalised(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    # Not an epsilon below which lengths count as it: the gradient of a row of zeros would be its reciprocal.
    return rows / lengths.masked_fill(lengths == 0, 1.0)


class _Bounded(torch.autograd.Function):
    """Clamp whose gradient vanishes at a bound only where a step down the gradient would lead out."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lowest: float, highest: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.bounds = lowest, highest
        return values.clamp(lowest, highest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        (gradient,) = gradients
        lowest, highest = ctx.bounds
        leads_out = ((values <= lowest) & (gradient > 0)) | ((values >= highest) & (gradient < 0))
        return gradient.masked_fill(leads_out, 0.0), None, None
