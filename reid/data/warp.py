"""Rotation and scale of a training image, its mask and its keypoints, by one matrix.

Convention: pixel centres at integers; a matrix (2, 3) maps (x, y, 1) of the crop to (x, y) of the warped crop.
"""

from __future__ import annotations

from typing import Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from reid.contracts import Settings


class WarpConfig(Settings):
    """Rotation and scale about the middle of the crop; the defaults are Newell et al.'s (2016, section 3.1)."""

    rotation_degrees: float = Field(default=30.0, ge=0.0, le=180.0)
    """The angle is drawn uniformly from -x ... x."""
    scale: tuple[float, float] = (0.75, 1.25)
    """Smallest and largest magnification, uniform."""
    background: Literal["colour", "noise"] = "colour"
    """What lies outside the image, padding included: `padding_colour`, or random pixels."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        low, high = self.scale
        if not 0.0 < low <= high:
            raise ValueError(f"scale ({low}, {high}): expected 0 < smallest <= largest")
        return self


def warp_matrices(config: WarpConfig, fractions: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """(S, 2, 3) matrices from (S, 2) fractions in [0, 1) for crops of height x width.

    A positive angle turns the image clockwise as it is seen (y points down).
    """
    angle = np.deg2rad(config.rotation_degrees) * (2.0 * fractions[:, 0] - 1.0)
    scale = config.scale[0] + (config.scale[1] - config.scale[0]) * fractions[:, 1]
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.stack((np.stack((cosine, -sine), axis=-1), np.stack((sine, cosine), axis=-1)), axis=1)  # (S, 2, 2)
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.concatenate((turn, (middle - turn @ middle)[..., None]), axis=2)


def move_points(matrices: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, K, 2) points of n crops through their (n, 2, 3) matrices."""
    with np.errstate(invalid="ignore"):  # points that are not finite stay so, and are invisible
        moved: NDArray[np.float64] = points @ matrices[:, :, :2].transpose(0, 2, 1) + matrices[:, None, :, 2]
    return moved


def warp_crop(
    padded: NDArray[np.uint8],
    out: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    crop: tuple[int, int],
    *,
    flipped: bool,
    colour: tuple[int, int, int] | None,
    nearest: bool = False,
) -> None:
    """Cut a crop of the size of `out` at (top, left) of `padded`, warp and then flip it: one pass over the pixels.

    Args:
        padded: (h, w) or (h, w, 3).
        out: (H, W) or (H, W, 3), contiguous, written to.
        matrix: (2, 3) of this image.
        crop: Top and left.
        flipped: Left-right, after the warp.
        colour: What lies outside `padded`; None leaves what `out` holds there.
        nearest: Take the nearest pixel (masks) instead of interpolating.
    """
    height, width = out.shape[:2]
    top, left = crop
    whole = matrix.copy()
    whole[:, 2] -= matrix[:, :2] @ np.array([left, top], dtype=np.float64)
    if flipped:
        whole[0] *= -1.0
        whole[0, 2] += width - 1
    result = cv2.warpAffine(
        padded, whole, (width, height), dst=out,
        flags=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_TRANSPARENT if colour is None else cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0) if colour is None else colour,
    )  # fmt: skip
    if result is not out:
        np.copyto(out, result)
