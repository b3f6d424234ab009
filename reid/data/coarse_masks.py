"""Coarse vehicle masks by GrabCut (Rother et al., 2004), which PANet learns from (METHOD 2.1; PMANet, section III-A).

The image is stretched to a square and padded by its edge; GrabCut cuts the square from the padding, on the image and on
the image turned by 180 degrees, and the mask is where both agree. Ours differs in nothing but one saving: when the
first cut leaves too little foreground for any agreement to be enough, the second is not made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from reid.contracts import Settings
from reid.data.additions import Additions, Provenance, Sample
from reid.data.decode import UnreadableImageError, decode_image

ALGORITHM_VERSION: Final = 1
"""Raise it with any change of the masks: sets made with another version are told apart by it."""
FALLBACKS: Final = ("foreground_small", "foreground_large", "image_truncated", "image_unreadable")
"""Why an image was given the ellipse."""
_MODEL_NUMBERS: Final = 65
"""Of a mixture of five Gaussians in OpenCV: weight, mean and covariance of each."""


class CoarseMaskConfig(Settings):
    """GrabCut and its fallback; the defaults are METHOD 2.1."""

    size: int = Field(default=192, ge=8)
    """The image is stretched to a square of so many pixels."""
    padding: int = Field(default=32, ge=1)
    """Pixels of the edge's colour on every side: the certain background."""
    iterations: int = Field(default=5, ge=1)
    """Of GrabCut."""
    seed: int = Field(default=0, ge=0)
    """Of OpenCV's random numbers, set before each cut."""
    min_foreground: float = Field(default=0.15, ge=0.0, le=1.0)
    """Masks with a smaller share of the image are replaced by the ellipse."""
    max_foreground: float = Field(default=0.95, ge=0.0, le=1.0)
    """Masks with a larger share of the image are replaced by the ellipse."""
    ellipse: float = Field(default=0.9, gt=0.0, le=1.0)
    """Axes of the ellipse as a share of the image's width and height."""


class CoarseMasks:
    """The enrichment: a mask for every image, the ellipse where GrabCut or the image fails."""

    def __init__(self, config: CoarseMaskConfig | None = None) -> None:
        self.config = config or CoarseMaskConfig()

    @property
    def provenance(self) -> Provenance:
        """Settings, our version and OpenCV's, whose cuts may differ."""
        version = f"grabcut {ALGORITHM_VERSION}, opencv {cv2.__version__}"
        return Provenance(name="coarse-masks", version=version, settings=self.config.model_dump(mode="json"))

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Additions]:
        """A mask for each sample, and its share of foreground."""
        for sample in samples:
            try:
                mask, problem = coarse_mask(decode_image(sample.image), self.config)
            except UnreadableImageError as error:
                mask, problem = ellipse_mask(sample.height, sample.width, self.config.ellipse), error.reason
            share = cv2.countNonZero(mask) / mask.size
            yield Additions(mask=encode_mask(mask), problem=problem, measures={"foreground_share": share})


def coarse_mask(image: NDArray[np.uint8], config: CoarseMaskConfig) -> tuple[NDArray[np.uint8], str]:
    """The mask of an image, and why it is the ellipse.

    Sets the seed of OpenCV's random numbers in this thread. The same on every call; other processors or versions of
    OpenCV may round differently.

    Args:
        image: (H, W, 3) uint8 RGB, of any size.
        config: Sizes and limits.

    Returns:
        (H, W) uint8, 1 on the vehicle and 0 elsewhere; an empty text, or one of `FALLBACKS`.
    """
    height, width = image.shape[:2]
    size, padding = config.size, config.padding
    shrinks = height > size and width > size
    square = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    padded = cv2.copyMakeBorder(square, padding, padding, padding, padding, cv2.BORDER_REPLICATE)
    mask = _cut(padded, config)
    smallest, largest = config.min_foreground * mask.size, config.max_foreground * mask.size
    if cv2.countNonZero(mask) >= smallest:
        mask &= cv2.rotate(_cut(cv2.rotate(padded, cv2.ROTATE_180), config), cv2.ROTATE_180)
    foreground = cv2.countNonZero(mask)
    if not smallest <= foreground <= largest:
        problem = "foreground_small" if foreground < smallest else "foreground_large"
        return ellipse_mask(height, width, config.ellipse), problem
    shrinks = height < size and width < size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    stretched: NDArray[np.uint8] = cv2.resize(mask * np.uint8(255), (width, height), interpolation=interpolation)
    return stretched >> np.uint8(7), ""


def _cut(padded: NDArray[np.uint8], config: CoarseMaskConfig) -> NDArray[np.uint8]:
    """(size, size) uint8 0/1: what GrabCut takes for foreground inside the padding."""
    size, padding = config.size, config.padding
    labels = np.empty(padded.shape[:2], dtype=np.uint8)
    background, foreground = np.zeros((1, _MODEL_NUMBERS)), np.zeros((1, _MODEL_NUMBERS))
    cv2.setRNGSeed(config.seed)
    rectangle = (padding, padding, size, size)  # x, y, width, height
    cv2.grabCut(padded, labels, rectangle, background, foreground, config.iterations, cv2.GC_INIT_WITH_RECT)
    # Odd labels are certain (1) and probable (3) foreground.
    return labels[padding : padding + size, padding : padding + size] & np.uint8(1)


def ellipse_mask(height: int, width: int, axes: float) -> NDArray[np.uint8]:
    """(height, width) uint8, 1 on an ellipse in the middle whose axes are a share of the sides.

    >>> ellipse_mask(3, 5, 1.0)
    array([[0, 1, 1, 1, 0],
           [1, 1, 1, 1, 1],
           [0, 1, 1, 1, 0]], dtype=uint8)
    """
    y = (np.arange(height) - (height - 1) / 2) / (axes * height / 2)
    x = (np.arange(width) - (width - 1) / 2) / (axes * width / 2)
    return (y[:, None] ** 2 + x[None, :] ** 2 <= 1).astype(np.uint8)


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """A (H, W) 0/1 mask as a PNG of one bit a pixel, 0 background and 255 vehicle for every reader."""
    done, data = cv2.imencode(".png", mask * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])
    assert done, f"OpenCV cannot encode a mask of shape {mask.shape}"
    return bytes(data)
