"""Vehicles of other images, pasted in front of a vehicle or behind it: its mask learns that they are not part of it.

On full roads coarse masks take neighbours along, and hide that they are wrong: a network that draws the outline of
whatever stands there agrees with them. Of a pasted vehicle it is known that it does not belong.

Source: Ghiasi et al., "Simple copy-paste is a strong data augmentation method for instance segmentation" (CVPR 2021);
neither of the papers has it. Ours adds that half of the vehicles are pasted behind, where the mask shows no vehicle.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from reid.contracts import Settings
from reid.data.degradation import Probability
from reid.data.draws import Purpose, step_fractions
from reid.data.resizing import resize_image, resize_mask

_NUM_DRAWS: Final = 6


class PasteConfig(Settings):
    """How often, how large and where."""

    probability: Probability = 0.5
    """That a vehicle of another image is pasted into an image."""
    in_front: Probability = 0.5
    """Share of them that hides what lies below it; the others are hidden by the vehicle of the image."""
    scale: tuple[float, float] = (0.5, 1.2)
    """Smallest and largest size of the other image in relation to this one, uniform."""
    distance: tuple[float, float] = (0.3, 0.7)
    """Smallest and largest distance of the pasted vehicle's centre from the image's, as a share of its sides, uniform;
    in any direction."""

    @model_validator(mode="after")
    def _check_ranges(self) -> PasteConfig:
        for name, most in (("scale", 4.0), ("distance", 1.5)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise ValueError(f"{name} ({low}, {high}): expected 0 < smallest <= largest <= {most:g}")
        return self


def draw_pastes(config: PasteConfig, *, seed: int, epoch: int, step: int, num_images: int) -> NDArray[np.float64]:
    """(S, 6) fractions of a step, one row for each slot of the global batch, for `paste`."""
    fractions = step_fractions(seed, epoch, Purpose.PASTE, step, (num_images, _NUM_DRAWS))
    fractions[fractions[:, 0] >= config.probability] = np.nan
    return fractions


def paste(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    other_image: NDArray[np.uint8],
    other_mask: NDArray[np.uint8],
    fractions: NDArray[np.float64],
    config: PasteConfig,
    area_above: float,
) -> None:
    """Paste the vehicle of one image into another; an empty mask pastes nothing.

    Args:
        image: (H, W, 3) uint8, written to.
        mask: (H, W) 0/1; loses what a vehicle in front hides.
        other_image: (h, w, 3) uint8 of any size.
        other_mask: (h, w) 0/1.
        fractions: (6,) a row of `draw_pastes` that is not NaN.
        config: Sizes and places.
        area_above: As of `TransformConfig`.
    """
    _, front, scale, angle, distance, mirror = fractions.tolist()
    height, width = mask.shape
    size = config.scale[0] + (config.scale[1] - config.scale[0]) * scale
    resized = np.empty((max(1, round(size * height)), max(1, round(size * width)), 3), dtype=np.uint8)
    outline = np.empty(resized.shape[:2], dtype=np.uint8)
    resize_image(other_image, resized, area_above)
    resize_mask(other_mask, outline)
    if mirror < 0.5:
        resized, outline = resized[:, ::-1], outline[:, ::-1]
    rows, columns = np.flatnonzero(outline.any(axis=1)), np.flatnonzero(outline.any(axis=0))
    if not len(rows):
        return
    away = config.distance[0] + (config.distance[1] - config.distance[0]) * distance
    top = round(height * (0.5 + away * math.sin(2 * math.pi * angle)) - (rows[0] + rows[-1] + 1) / 2)
    left = round(width * (0.5 + away * math.cos(2 * math.pi * angle)) - (columns[0] + columns[-1] + 1) / 2)
    # The part of the other image that falls into this one.
    here = slice(max(0, top), min(height, top + len(outline))), slice(max(0, left), min(width, left + outline.shape[1]))
    there = slice(here[0].start - top, here[0].stop - top), slice(here[1].start - left, here[1].stop - left)
    if here[0].start >= here[0].stop or here[1].start >= here[1].stop:
        return
    shown = outline[there] > 0
    if front < config.in_front:
        mask[here][shown] = 0
    else:
        shown = shown & (mask[here] == 0)
    image[here][shown] = resized[there][shown]
