"""The global batch: features of all workers on every worker, with the gradient of one process.

Every worker gathers the rows of all R workers and computes the same loss L on them. With X_r the rows of worker r and
theta the parameters, the gradient wanted is

    dL/dtheta = sum over r of (dL/dX_r) (dX_r/dtheta)

Worker r can only differentiate through its own rows, and DistributedDataParallel averages what the workers have, so

    average over r of  s (dL/dX_r) (dX_r/dtheta)  =  (s / R) dL/dtheta

which is right for s = R. The backward of the gather therefore hands each worker its own slice of the gradient times R,
and no communication is needed in backward. A term that is a mean over the local rows only (the ID loss) needs nothing:
the average of R local means over equally many rows is the global mean.

All workers must hold equally many rows, as the batch plan guarantees.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from reid.process_group import world_size


def gather(rows: Tensor) -> Tensor:
    """Rows of all workers in rank order, without gradient: labels, visibility.

    Args:
        rows: (B, ...) of this worker, any dtype.

    Returns:
        (R * B, ...); `rows` itself without a process group.
    """
    if world_size() == 1:
        return rows.detach()
    # Booleans travel as bytes: not every backend knows them.
    local = rows.detach().contiguous()
    sent = local.view(torch.uint8) if local.dtype == torch.bool else local
    received = [torch.empty_like(sent) for _ in range(world_size())]
    dist.all_gather(received, sent)
    return torch.cat(received).view(local.dtype)


def own_rows(rows: Tensor) -> Tensor:
    """What `gather` took from this worker: its B of (R * B, ...) rows."""
    workers = world_size()
    if workers == 1:
        return rows
    return rows.chunk(workers)[dist.get_rank()]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all workers in rank order; backward gives this worker's rows R times their gradient (see the module's
    text).

    Args:
        rows: (B, ...) floating point, of this worker.

    Returns:
        (R * B, ...); `rows` itself without a process group.
    """
    if world_size() == 1:
        return rows
    gathered = _Gather.apply(rows)
    assert isinstance(gathered, Tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return own_rows(gradient) * world_size()
