"""Inner products of many rows with many rows: what mining, ranking and re-ranking spend most of their time on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each row of `left` with each row of `right`, without a gradient.

    In float32 on a CPU the product is oneDNN's where PyTorch has it: `mm` is MKL's, which on AMD's processors is half
    as fast. oneDNN keeps the bits of a product the same wherever the two rows stand and however many threads compute,
    as long as the shapes are the same. Autocast does not reach it.

    Args:
        left: (..., N, D)
        right: (..., M, D) of the same leading dimensions, dtype and device.

    Returns:
        (..., N, M)
    """
    if torch.is_autocast_enabled(left.device.type):
        with torch.autocast(left.device.type, enabled=False):
            return row_products(left, right)
    left, right = left.detach(), right.detach()
    if not _suits_onednn(left) or right.numel() == 0:
        return left @ right.mT
    if left.dim() == 2:
        return _onednn_products(left.contiguous(), right.contiguous())
    groups = zip(left.flatten(0, -3), right.flatten(0, -3), strict=True)
    return torch.stack([row_products(*group) for group in groups]).view(*left.shape[:-1], -1)


def _onednn_products(left: Tensor, right: Tensor) -> Tensor:
    """By the operator that PyTorch's own compiler puts in the place of a linear layer; its name may change.

    Without it a layout of oneDNN's on the left is the way to the same product, for two copies: at 64 rows of 2,048 a
    third more time, at 512 rows a twentieth.
    """
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is None:
        return F.linear(left.to_mkldnn(), right).to_dense()
    products: Tensor = linear(left, right, None, "none", [], "")
    return products


def _suits_onednn(rows: Tensor) -> bool:
    suits = rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.numel() > 0
    return suits and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
