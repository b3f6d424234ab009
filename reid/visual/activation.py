"""Distance activation maps: the places of two images that make the distance between them (METHOD 1.7).

PPT, figure 4: `f1`, `f2` are the features before the BNNeck; channel c weighs `(f1[c] - f2[c])**2`, its share of the
squared distance; each map is the weighted sum of the channels of the last feature map; then ReLU, min-max jointly
over the pair (the paper does not say how it scales; jointly, so that the two compare), bilinear to the image size.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from reid.visual.mosaic import Image, captioned, check_image, fit_tile, row

HEAT_SHARE: Final = 0.5
"""Opacity of the heat map over the image where it is hottest."""


def distance_activation_maps(
    features: Tensor, feature_maps: Tensor, image_size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The maps of a pair of images.

    Args:
        features: (2, C) pooled features before the BNNeck.
        feature_maps: (2, C, h, w) last feature maps of the same network.
        image_size: (H, W) of the result.

    Returns:
        Two (H, W) float32 maps in 0..1, on one scale; all zero when the two features are equal.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if features.ndim != 2 or len(features) != 2 or feature_maps.shape[:2] != features.shape or feature_maps.ndim != 4:
        raise ValueError(
            f"expected features (2, C) and feature maps (2, C, h, w), got {tuple(features.shape)} and "
            f"{tuple(feature_maps.shape)}"
        )
    weights = (features[0].double() - features[1].double()).square()
    maps = torch.einsum("c,nchw->nhw", weights, feature_maps.double()).clamp_min(0)
    lowest, highest = maps.min(), maps.max()
    scaled = (maps - lowest) / (highest - lowest) if highest > lowest else torch.zeros_like(maps)
    large = F.interpolate(scaled[:, None], size=image_size, mode="bilinear", align_corners=False)[:, 0]
    first, second = large.clamp(0, 1).float().cpu().numpy()
    return first, second


def overlay_heat(image: Image, heat: NDArray[np.float32]) -> Image:
    """A heat map in colour over the image; cold parts leave the image as it is.

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: (H, W) in 0..1.

    Raises:
        ValueError: If the sizes differ.
    """
    check_image(image)
    if heat.shape != image.shape[:2]:
        raise ValueError(f"expected a heat map of the image's size {image.shape[:2]}, got {heat.shape}")
    levels = np.clip(heat * 255, 0, 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    share = (0.15 + HEAT_SHARE * heat)[..., None]
    mixed: Image = np.clip(np.rint(image * (1 - share) + colours * share), 0, 255).astype(np.uint8)
    return mixed


def activation_picture(
    images: tuple[Image, Image],
    heats: tuple[NDArray[np.float32], NDArray[np.float32]],
    *,
    captions: tuple[str, str] = ("", ""),
    tile_size: int = 160,
) -> Image:
    """The pair, each image beside its map: image 1, map 1, image 2, map 2."""
    tiles: list[Image] = []
    for image, heat, caption in zip(images, heats, captions, strict=True):
        tiles.append(captioned(fit_tile(image, tile_size), caption))
        tiles.append(captioned(fit_tile(overlay_heat(image, heat), tile_size), ""))
    return row(tiles)
