"""The process group of a run as `torch.distributed` knows it: what losses and training both ask of it."""

from __future__ import annotations

import torch.distributed as dist


def world_size() -> int:
    """Number of training workers, which share the global batch; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
