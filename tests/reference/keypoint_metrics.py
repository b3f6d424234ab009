"""Figures of a keypoint detector, point by point."""

from __future__ import annotations

import math

from numpy.typing import NDArray


def pck(places: NDArray, truth: NDArray, sizes: NDArray, share: float = 0.1) -> tuple[float, list[float | None]]:
    """PCK over all visible points, and of each keypoint."""
    right, counted = [0] * 20, [0] * 20
    for place, true, (height, width) in zip(places, truth, sizes, strict=True):
        for k in range(20):
            if true[k, 2]:
                counted[k] += 1
                right[k] += math.dist(place[k, :2], true[k, :2]) <= share * max(height, width)
    return sum(right) / sum(counted), [r / c if c else None for r, c in zip(right, counted, strict=True)]


def mean_errors(places: NDArray, truth: NDArray, sizes: NDArray) -> tuple[list[float | None], float, float]:
    """Of each keypoint and of all, as a share of the longer side; of all, in pixels."""
    errors: list[list[float]] = [[] for _ in range(20)]
    pixels = []
    for place, true, size in zip(places, truth, sizes, strict=True):
        for k in range(20):
            if true[k, 2]:
                pixels.append(math.dist(place[k, :2], true[k, :2]))
                errors[k].append(pixels[-1] / max(size))
    everything = [error for own in errors for error in own]
    means = [sum(own) / len(own) if own else None for own in errors]
    return means, sum(everything) / len(everything), sum(pixels) / len(pixels)


def f1(predicted: NDArray, true: NDArray) -> float:
    """2 precision recall / (precision + recall)."""
    hits = sum(bool(p) and bool(t) for p, t in zip(predicted.ravel(), true.ravel(), strict=True))
    precision, recall = hits / int(predicted.sum()), hits / int(true.sum())
    return 2 * precision * recall / (precision + recall)
