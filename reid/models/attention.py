"""Attention modules: the trilinear attention that tells channels of a feature map by the part they answer to."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from reid.contracts import Settings

IMAGES_AT_A_TIME: Final = 4
"""Images whose products of channels are in memory together: twice 16.8 MB each at 2,048 channels in float32."""


class AttentionConfig(Settings):
    """Trilinear attention (METHOD 2.1, Eq. 1 of PMANet)."""

    scaled: bool = True
    """True: the products of two channels are divided by the square root of the number of cells before their softmax.
    False: the paper's literal form; products of maps after a ReLU grow with the number of cells, and nearly all of a
    channel's weight falls on one channel."""


def trilinear_attention(features: Tensor, config: AttentionConfig) -> Tensor:
    """Attention maps S(S(X X^T) X), X being the (C, HW) matrix of an image and S the softmax of each row.

    The inner softmax says how alike two channels are, so that a channel becomes a mean of those that answer to the same
    part; the outer one makes the cells of each map sum to 1.

    Source: PMANet, Eq. 1. Ours differs: X X^T is divided by sqrt(HW) unless `config.scaled` is false. The outer softmax
    has no scale in either form: what it is given are means of features, which do not grow with the number of cells.

    Args:
        features: (B, C, H, W), any floating dtype; computed in float32 even under autocast (float64 stays float64).
        config: Scaled or literal.

    Returns:
        (B, C, H, W) float32, non-negative; each map sums to 1. Without gradient the memory needed above that does not
        grow with B.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)  # (B, C, HW)
        # The (C, C) products of an image are by far the largest thing here: only those of a few exist at a time.
        maps = [_attention_of_rows(some, config) for some in torch.split(rows, IMAGES_AT_A_TIME)]
        return torch.cat(maps).view(features.shape)


def _attention_of_rows(rows: Tensor, config: AttentionConfig) -> Tensor:
    """(N, C, HW) -> attention maps of the same shape."""
    # The scale on the smaller factor.
    scale = 1 / math.sqrt(rows.shape[2]) if config.scaled else 1.0
    alike = torch.bmm(rows * scale, rows.mT).softmax(dim=2)  # (N, C, C)
    return torch.bmm(alike, rows).softmax(dim=2)
