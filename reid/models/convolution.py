"""The block that the heads are made of: convolution, batch norm, ReLU."""

from __future__ import annotations

from torch import nn


def convolution_block(channels_in: int, channels_out: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """(B, channels_in, h, w) -> (B, channels_out, h, w), nothing below 0; the kernel is odd, the map padded by 0."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
