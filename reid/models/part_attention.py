"""Soft attention inside a branch of PMNet: the multi-scale module, and the two that the paper compares it with.

Each takes the map of a branch and gives one of the same shape. A map without a value below 0 stays without one.
"""

from __future__ import annotations

from typing import Final, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from reid.contracts import Settings
from reid.models.convolution import convolution_block

_DILATIONS: Final = (1, 2, 3)


class PartAttentionConfig(Settings):
    """Attention of PMNet's branches (METHOD 2.2, Tables III and IV of PMANet)."""

    kind: Literal["multi_scale", "squeeze_excitation", "residual", "none"] = "multi_scale"
    """multi_scale: the paper's module (Eq. 2). squeeze_excitation and residual: what Table IV puts in its place. none:
    the branch's map as it is (Table III)."""
    reduction: int = Field(default=16, ge=1)
    """How many times narrower the hidden layer of the channel attention is than the map; multi_scale and
    squeeze_excitation only."""

    @model_validator(mode="after")
    def _refuse_ignored_options(self) -> Self:
        ignored = self.reduction != type(self).model_fields["reduction"].default
        if ignored and self.kind not in ("multi_scale", "squeeze_excitation"):
            raise ValueError(f"attention {self.kind!r} has no reduction (got {self.reduction}): remove it")
        return self


def build_part_attention(config: PartAttentionConfig, channels: int) -> nn.Module:
    """The module of `config` for maps (B, channels, h, w)."""
    match config.kind:
        case "multi_scale":
            return MultiScaleAttention(channels, config.reduction)
        case "squeeze_excitation":
            return SqueezeExcitation(channels, config.reduction)
        case "residual":
            return ResidualAttention(channels)
        case "none":
            return nn.Identity()


class MultiScaleAttention(nn.Module):
    """Spatial mask times channel mask times map, plus map.

    Source: PMANet Eq. 2 and Fig. 5. The paper gives no widths; here a quarter of the map's channels for each dilation
    and for the first of the "another 3 Conv blocks", an eighth for the second, 1 for the third, which ends in the
    sigmoid in place of batch norm and ReLU (METHOD 2.2: 512 -> 3 x 128 -> 128 -> 64 -> 1). Both poolings go through the
    same two fully connected layers.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        quarter, eighth = max(1, channels // 4), max(1, channels // 8)
        self.scales = nn.ModuleList(convolution_block(channels, quarter, 3, dilation) for dilation in _DILATIONS)
        self.spatial = nn.Sequential(
            convolution_block(len(_DILATIONS) * quarter, quarter, 1),
            convolution_block(quarter, eighth, 3),
            nn.Conv2d(eighth, 1, 3, padding=1),
        )
        self.channel = _channel_layers(channels, reduction)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        spatial, channel = self.masks(maps)
        return spatial * channel * maps + maps

    def masks(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The spatial mask (B, 1, h, w) and the channel mask (B, C, 1, 1), both in 0..1."""
        scales = torch.cat([scale(maps) for scale in self.scales], dim=1)
        pooled = self.channel(maps.mean((2, 3))) + self.channel(maps.amax((2, 3)))
        return self.spatial(scales).sigmoid(), pooled.sigmoid()[:, :, None, None]


class SqueezeExcitation(nn.Module):
    """Channel mask times map.

    Source: Hu et al., "Squeeze-and-excitation networks" (2018), section 3.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.channel = _channel_layers(channels, reduction)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        mask: Tensor = self.channel(maps.mean((2, 3))).sigmoid()
        return maps * mask[:, :, None, None]


class ResidualAttention(nn.Module):
    """(1 + mask) times map, with a mask for each cell of each channel.

    Source: Wang et al., "Residual attention network for image classification" (2017), Eq. 3 and section 3.2; PMANet
    names the module as TAMR adapted it and says no more. Ours is the smallest form: the trunk is the map itself, and
    the mask branch goes down and up once: max pooling, a residual unit with a bottleneck of a quarter of the channels,
    bilinear upsampling, two 1x1 convolutions, sigmoid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = max(1, channels // 4)
        self.down = nn.MaxPool2d(3, stride=2, padding=1)
        self.unit = nn.Sequential(
            convolution_block(channels, quarter, 1),
            convolution_block(quarter, quarter, 3),
            nn.Conv2d(quarter, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.up = nn.Sequential(convolution_block(channels, channels, 1), nn.Conv2d(channels, channels, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        small = self.down(maps)
        small = (small + self.unit(small)).relu()
        large = F.interpolate(small, maps.shape[2:], mode="bilinear", align_corners=False)
        mask: Tensor = self.up(large).sigmoid()
        return (1 + mask) * maps


def _channel_layers(channels: int, reduction: int) -> nn.Sequential:
    hidden = max(1, channels // reduction)
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
