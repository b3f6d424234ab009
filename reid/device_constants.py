"""Small tables that a network or a loss reads in every step, kept on the device.

`torch.tensor(table, device=...)` copies from the host each time, and on an accelerator the host waits for the copy,
which waits for all that was queued before it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=1024)
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor of (nested) tuples of numbers on a device: made at the first call, the same one ever after.

    It is shared: never write to it.

    Args:
        values: Tuples, of one length at each depth.
        dtype: Of the tensor.
        device: Likewise.
    """
    # A tensor born under inference mode could not be used in training later.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
