"""Keypoints of images by a trained detector: what evaluation measures and what may be written into shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.contracts import Batch, HeatMapOutput
from reid.evaluation.heat_map_peaks import Refinement, Score, find_peaks, peaks_to_raw, with_visibility

Detector = Callable[[Tensor], HeatMapOutput]
"""(B, 3, H, W) uint8 RGB -> heat maps, such as `Hourglass` in evaluation mode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedPeaks:
    """Peaks of N images."""

    peaks: NDArray[np.float32]
    """(N, 20, 3) x, y in raw-image pixels and height of the peak, of every point, visible or not."""
    samples: NDArray[np.int64]
    """(N,) row of each image in the index."""


def predict_keypoints(
    detector: Detector,
    images: Tensor,
    raw_sizes: NDArray[np.integer],
    thresholds: NDArray[np.floating],
    refinement: Refinement = "quarter",
    score: Score = "peak",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keypoints of a batch of images, as they are stored in shards.

    Args:
        detector: In evaluation mode.
        images: (B, 3, H, W) uint8 RGB, resized from the raw images as a whole, on the detector's device.
        raw_sizes: (B, 2) height and width of the raw images.
        thresholds: (20,) a keypoint is visible when its peak is higher.
        refinement: How peaks are placed below a cell.
        score: What tells whether a keypoint is visible.

    Returns:
        (B, 20, 3) float32 x, y in raw-image pixels and visibility 0/1 (invisible points all zero), and (B, 20) float32
        scores: the heights (or masses) of the peaks, of all points.
    """
    peaks = _peaks(detector, images, raw_sizes, refinement, score)
    return with_visibility(peaks, thresholds), np.ascontiguousarray(peaks[..., 2])


def predict_peaks(
    detector: Detector,
    batches: Iterable[Batch],
    sizes: NDArray[np.integer],
    device: torch.device,
    *,
    refinement: Refinement = "quarter",
    score: Score = "peak",
    precision: Literal["float32", "bf16"] = "float32",
) -> PredictedPeaks:
    """Peaks of all images, in the order of the batches.

    Args:
        detector: In evaluation mode.
        batches: Images; each row of the index once.
        sizes: (all rows of the index, 2) height and width of the raw images.
        device: Where the detector is.
        refinement: How peaks are placed below a cell.
        score: What tells whether a keypoint is visible.
        precision: bf16 runs the network under autocast; decoding is float32 always.

    Raises:
        ValueError: If there are no batches.
    """
    peaks, samples = [], []
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast:
        for batch in batches:
            rows = batch.samples.numpy().astype(np.int64)
            images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
            peaks.append(_peaks(detector, images, sizes[rows], refinement, score))
            samples.append(rows)
    if not peaks:
        raise ValueError("expected images to find keypoints in, got no batch; check split and slice")
    return PredictedPeaks(peaks=np.concatenate(peaks), samples=np.concatenate(samples))


def join_peaks(parts: list[PredictedPeaks]) -> PredictedPeaks:
    """The slices of several workers as one, rows ascending, each row once (a repeated slice does no harm)."""
    samples = np.concatenate([part.samples for part in parts])
    rows, first = np.unique(samples, return_index=True)
    return PredictedPeaks(peaks=np.concatenate([part.peaks for part in parts])[first], samples=rows)


def _peaks(
    detector: Detector, images: Tensor, raw_sizes: NDArray[np.integer], refinement: Refinement, score: Score
) -> NDArray[np.float32]:
    with torch.inference_mode():
        maps = detector(images).maps[:, -1]
        found = find_peaks(maps, refinement, score).cpu().numpy()
    return peaks_to_raw(found, (maps.shape[2], maps.shape[3]), raw_sizes)
