"""How well predicted keypoints agree with annotated ones (METHOD 1.6).

Convention: keypoints (N, 20, 3) are x, y in raw-image pixels and visibility 0/1; only annotated images are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.keypoints import NUM_KEYPOINTS, NUM_PLANES, PLANE_NAMES

PCK_SHARE: Final = 0.1
"""PCK@0.1: a point is right when it misses by at most this share of the normaliser."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeypointMetrics:
    """Figures of a detector over N annotated images. A tuple has an entry a keypoint; None: nothing to count."""

    num_images: int
    num_visible: tuple[int, ...]
    """Annotated visible points of each keypoint."""
    pck: float
    """Share 0..1 of all visible points that were found (PCK@0.1)."""
    pck_per_keypoint: tuple[float | None, ...]
    mean_error: float
    """Mean distance of the visible points, as a share of the normaliser."""
    mean_error_per_keypoint: tuple[float | None, ...]
    mean_error_pixels: float
    """The same in raw-image pixels."""
    visibility_f1: float
    """F1 of "visible" over all points of all keypoints together (micro average), 0..1."""
    visibility_f1_per_keypoint: tuple[float | None, ...]


def measure_keypoints(
    places: NDArray[np.floating],
    predicted_visible: NDArray[np.bool_],
    truth: NDArray[np.floating],
    sizes: NDArray[np.integer],
) -> KeypointMetrics:
    """PCK@0.1, error and visibility F1.

    PCK: share of truly visible points that are predicted within 0.1 x the longer side of the vehicle's box (Yang and
    Ramanan, TPAMI 2013, alpha = 0.1 of max(h, w)). The data sets' images are cut to the vehicle, so the box is the
    image. The place of every visible point counts, also where the detector calls it invisible: that is what F1 tells.

    Args:
        places: (N, 20, >= 2) predicted x, y in raw-image pixels, of every point.
        predicted_visible: (N, 20) which of them the detector calls visible.
        truth: (N, 20, 3) annotation.
        sizes: (N, 2) height and width of the raw images.

    Raises:
        ValueError: No image, or shapes that do not fit.
    """
    count = len(truth)
    if truth.shape != (count, NUM_KEYPOINTS, 3) or places.shape[:2] != truth.shape[:2] or len(sizes) != count:
        raise ValueError(
            f"expected places (N, {NUM_KEYPOINTS}, 2) and truth (N, {NUM_KEYPOINTS}, 3) with N sizes, got"
            f" {places.shape}, {truth.shape} and {len(sizes)}"
        )
    if not count:
        raise ValueError("no annotated image to measure keypoints on: give a data set with keypoints")
    visible = truth[..., 2] > 0
    pixels = np.linalg.norm(places[..., :2].astype(np.float64) - truth[..., :2].astype(np.float64), axis=-1)
    errors = pixels / np.asarray(sizes, dtype=np.float64).max(axis=1)[:, None]
    hits = (predicted_visible & visible).sum(axis=0)
    said, true = predicted_visible.sum(axis=0), visible.sum(axis=0)
    return KeypointMetrics(
        num_images=count,
        num_visible=tuple(true.tolist()),
        pck=_mean(errors[visible] <= PCK_SHARE),
        pck_per_keypoint=tuple(_mean_or_none(errors[:, k][visible[:, k]] <= PCK_SHARE) for k in range(NUM_KEYPOINTS)),
        mean_error=_mean(errors[visible]),
        mean_error_per_keypoint=tuple(_mean_or_none(errors[:, k][visible[:, k]]) for k in range(NUM_KEYPOINTS)),
        mean_error_pixels=_mean(pixels[visible]),
        visibility_f1=float(2 * hits.sum() / max(1, said.sum() + true.sum())),
        visibility_f1_per_keypoint=tuple(
            2 * h / (s + t) if s + t else None
            for h, s, t in zip(hits.tolist(), said.tolist(), true.tolist(), strict=True)
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneAgreement:
    """Planes that predicted keypoints show against those that annotated ones show; shares 0..1 of the images."""

    agreement: Mapping[str, float]
    """Plane -> share of images in which both say the same."""
    true_rate: Mapping[str, float]
    """Plane -> share of images that show it by the annotation."""
    predicted_rate: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean agreement over the planes."""
        return sum(self.agreement.values()) / len(self.agreement)


def compare_planes(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> PlaneAgreement:
    """Agreement of (N, 4) visible planes from predicted and annotated keypoints.

    Raises:
        ValueError: Shapes that do not fit.
    """
    if predicted.shape != truth.shape or truth.shape[1:] != (NUM_PLANES,) or not len(truth):
        raise ValueError(f"expected two arrays (N, {NUM_PLANES}), got {predicted.shape} and {truth.shape}")
    return PlaneAgreement(
        agreement=dict(zip(PLANE_NAMES, (predicted == truth).mean(axis=0).tolist(), strict=True)),
        true_rate=dict(zip(PLANE_NAMES, truth.mean(axis=0).tolist(), strict=True)),
        predicted_rate=dict(zip(PLANE_NAMES, predicted.mean(axis=0).tolist(), strict=True)),
    )


def orientation_agreement(predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> float | None:
    """Share of images whose orientation codes agree, of those with a true one (>= 0); None when there is none.

    >>> orientation_agreement(np.array([3, 1, 2]), np.array([3, 4, -1]))
    0.5
    """
    known = truth >= 0
    return float((predicted[known] == truth[known]).mean()) if known.any() else None


def _mean(values: NDArray[np.generic]) -> float:
    """Mean, 0 of nothing."""
    return float(values.mean()) if len(values) else 0.0


def _mean_or_none(values: NDArray[np.generic]) -> float | None:
    return float(values.mean()) if len(values) else None
