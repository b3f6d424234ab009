"""The keypoint detector: a stacked hourglass (Newell, Yang and Deng, ECCV 2016), written from the paper.

    images --normalise--> stem (stride 4) --hourglass--> features --1x1--> heat maps of stack 1
                              ^------------ + features and heat maps, mapped back ------------|  and so on

An hourglass halves the map `depth` times and doubles it again; at each size a branch of its own carries the detail
across, and the two are added.
"""

from __future__ import annotations

from typing import Final, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from reid.contracts import HeatMapOutput, Settings
from reid.keypoints import NUM_KEYPOINTS
from reid.models.pixels import PixelNormalization

STEM_STRIDE: Final = 4
"""The stem's convolution and its pooling halve the image once each: 256 -> 64."""
_STEM_KERNEL: Final = 7
_HEAT_MAP_DEVIATION: Final = 1e-3
"""Of the last convolutions' first weights: maps begin near zero (Xiao et al., ECCV 2018), instead of as noise whose
removal takes the first hundred steps."""


class HourglassConfig(Settings):
    """The keypoint detector (METHOD 1.6); the defaults are the paper's."""

    num_stacks: int = Field(default=8, ge=1)
    """Hourglasses in a row; each gives heat maps and is supervised."""
    num_blocks: int = Field(default=1, ge=1)
    """Residual blocks per position of an hourglass."""
    channels: int = Field(default=256, ge=4)
    """Of the feature maps, a multiple of 4; the stem begins with a quarter of it."""
    depth: int = Field(default=4, ge=1)
    """Times that an hourglass halves the map: 64 -> 4. The image's sides must be multiples of 4 x 2**depth."""
    weights: str | None = None
    """What a new run starts from. None: random weights. Otherwise a trained detector of the same shape: a checkpoint
    folder, or a .safetensors file with this network's keys; path or URL. Resuming and evaluating never read it."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected sha256 of that file, of a checkpoint folder that of its manifest.json (an evaluation's
    `checkpoint_hash`); None: not checked (but a checkpoint's files must be those that its manifest names)."""

    @model_validator(mode="after")
    def _sha256_needs_weights(self) -> Self:
        if self.sha256 is not None and self.weights is None:
            raise ValueError("sha256 is given but weights is None: name the checkpoint or file, or remove sha256")
        return self

    @model_validator(mode="after")
    def _channels_are_quartered(self) -> Self:
        if self.channels % 4:
            raise ValueError(f"channels {self.channels}: expected a multiple of 4, the stem begins with a quarter")
        return self


class Hourglass(nn.Module):
    """Stacked hourglass: images to one set of heat maps per stack."""

    def __init__(self, config: HourglassConfig) -> None:
        """Build the network with random weights."""
        super().__init__()
        self.config = config
        channels, stacks = config.channels, range(config.num_stacks)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 4, _STEM_KERNEL, stride=2, padding=_STEM_KERNEL // 2, bias=False),
            nn.BatchNorm2d(channels // 4),
            nn.ReLU(),
            ResidualBlock(channels // 4, channels // 2),
            nn.MaxPool2d(2),
            ResidualBlock(channels // 2, channels // 2),
            ResidualBlock(channels // 2, channels),
        )
        self.hourglasses = nn.ModuleList(_Level(channels, config.num_blocks, config.depth) for _ in stacks)
        self.features = nn.ModuleList(_after_hourglass(channels, config.num_blocks) for _ in stacks)
        self.heat_maps = nn.ModuleList(nn.Conv2d(channels, NUM_KEYPOINTS, 1) for _ in stacks)
        self.features_back = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in stacks[1:])
        self.heat_maps_back = nn.ModuleList(nn.Conv2d(NUM_KEYPOINTS, channels, 1) for _ in stacks[1:])
        for layer in self.heat_maps:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=_HEAT_MAP_DEVIATION)
            nn.init.zeros_(layer.bias)
        self.normalise_pixels = PixelNormalization()

    def forward(self, images: Tensor) -> HeatMapOutput:
        """The heat maps of every stack.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.

        Raises:
            ValueError: When H or W is no multiple of 4 x 2**depth.
        """
        least = STEM_STRIDE << self.config.depth
        if images.shape[2] % least or images.shape[3] % least:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels: expected multiples of {least} = stem stride"
                f" {STEM_STRIDE} x 2**{self.config.depth} (model.depth); resize them or lower the depth"
            )
        x = self.stem(self.normalise_pixels(images))
        maps: list[Tensor] = []
        for stack, hourglass in enumerate(self.hourglasses):
            features = self.features[stack](hourglass(x))
            maps.append(self.heat_maps[stack](features))
            if stack + 1 < self.config.num_stacks:
                x = x + self.features_back[stack](features) + self.heat_maps_back[stack](maps[-1])
        return HeatMapOutput(maps=torch.stack(maps, dim=1), stride=STEM_STRIDE)


class ResidualBlock(nn.Module):
    """Pre-activation bottleneck (He et al. 2016): BN, ReLU, convolution, three times, halved inside."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        inner = channels_out // 2
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels_in), nn.ReLU(), nn.Conv2d(channels_in, inner, 1, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, channels_out, 1),
        )  # fmt: skip
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels_out, h, w)."""
        result: Tensor = self.shortcut(x) + self.body(x)
        return result


class _Level(nn.Module):
    """One size of an hourglass: the branch at this size plus everything below it, doubled back."""

    def __init__(self, channels: int, num_blocks: int, depth: int) -> None:
        super().__init__()
        self.across = _blocks(channels, num_blocks)
        self.down = _blocks(channels, num_blocks)
        self.inner = _Level(channels, num_blocks, depth - 1) if depth > 1 else _blocks(channels, num_blocks)
        self.up = _blocks(channels, num_blocks)

    def forward(self, x: Tensor) -> Tensor:
        below = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        result: Tensor = self.across(x) + F.interpolate(below, scale_factor=2.0, mode="nearest")
        return result


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels, channels) for _ in range(count)))


def _after_hourglass(channels: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(
        _blocks(channels, num_blocks), nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )
