"""Figures and gradients of a loss on one of several workers, as training would have them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from reid.contracts import LossTerms


def values_of(terms: LossTerms) -> dict[str, float]:
    """Total, parts and statistics."""
    return {"total": terms.total.item()} | {
        name: value.item() for name, value in (terms.parts | terms.statistics).items()
    }


def averaged_gradients(model: nn.Module, world_size: int, *, some_unused: bool = False) -> dict[str, torch.Tensor]:
    """What DistributedDataParallel leaves after a backward pass; parameters without gradient fail unless allowed."""
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert some_unused, f"{name} has no gradient"
            continue
        if world_size > 1:
            dist.all_reduce(parameter.grad)
        gradients[name] = parameter.grad / world_size
    return gradients
