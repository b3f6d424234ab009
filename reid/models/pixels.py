"""Images as they come from shards, made ready for a network."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STANDARD_DEVIATION: Final = (0.229, 0.224, 0.225)


class PixelNormalization(nn.Module):
    """ImageNet's mean and standard deviation, which torchvision's weights expect, on the device and in float32."""

    mean: Tensor
    standard_deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Not in the state dict: constants of the pixel format, not weights.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer(
            "standard_deviation", torch.tensor(IMAGENET_STANDARD_DEVIATION).view(1, 3, 1, 1) * 255, persistent=False
        )

    def forward(self, images: Tensor) -> Tensor:
        """RGB images (B, 3, H, W) with values 0..255, uint8 or floating, to about zero mean and unit deviation."""
        return (images - self.mean) / self.standard_deviation
