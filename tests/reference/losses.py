"""Slow, obvious float64 versions of the losses, with loops over anchors. They import nothing of ours."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def violation(gap: float, margin: float | str) -> float:
    if margin == "soft":
        return math.log1p(math.exp(-abs(gap))) + max(gap, 0.0)
    return max(0.0, gap + float(margin))


def batch_hard_triplet(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    margin: float | str,
    shown: NDArray[np.bool_] | None = None,
    *,
    reduction: str = "mean",
    anchor_is_positive: bool = False,
    count_every_anchor: bool = False,
) -> tuple[float, list[int]]:
    """Loss and valid anchors. The two last options are the usual mistakes, for tests that must fail with them."""
    num_rows = len(features)
    if shown is None:
        shown = np.ones(num_rows, dtype=bool)
    violations, anchors = [], []
    for a in range(num_rows):
        if not shown[a]:
            continue
        positives = [
            distance(features[a], features[i])
            for i in range(num_rows)
            if shown[i] and labels[i] == labels[a] and (i != a or anchor_is_positive)
        ]
        negatives = [distance(features[a], features[i]) for i in range(num_rows) if shown[i] and labels[i] != labels[a]]
        if positives and negatives:
            violations.append(violation(max(positives) - min(negatives), margin))
            anchors.append(a)
    total = sum(violations)
    if reduction == "sum":
        return total, anchors
    return total / max(1, num_rows if count_every_anchor else len(anchors)), anchors


def visible_triplet(
    plane_features: NDArray[np.float64],
    plane_visible: NDArray[np.bool_],
    labels: NDArray[np.int64],
    margin: float | str,
    weights: tuple[float, ...],
    *,
    reduction: str = "mean",
    normalised: bool = True,
) -> float:
    """Weighted sum over planes (rows, planes, dim) of the batch-hard triplet among the rows that show the plane."""
    total = 0.0
    for plane, weight in enumerate(weights):
        features = plane_features[:, plane].copy()
        if normalised:
            for row in features:
                norm = distance(row, np.zeros_like(row))
                if norm > 0:
                    row /= norm
        loss, _ = batch_hard_triplet(features, labels, margin, plane_visible[:, plane], reduction=reduction)
        total += weight * loss
    return total


def smoothed_cross_entropy(logits: NDArray[np.float64], labels: NDArray[np.int64], smoothing: float) -> float:
    """Mean cross-entropy against one-hot targets of which `smoothing` is spread over all classes."""
    num_rows, num_classes = logits.shape
    total = 0.0
    for row in range(num_rows):
        largest = max(logits[row])
        log_sum = largest + math.log(sum(math.exp(z - largest) for z in logits[row]))
        for column in range(num_classes):
            target = smoothing / num_classes + (1 - smoothing) * (column == labels[row])
            total -= target * (logits[row, column] - log_sum)
    return total / num_rows


def numeric_gradient(fn, x: NDArray[np.float64], step: float = 1e-6) -> NDArray[np.float64]:  # type: ignore[no-untyped-def]
    """Central differences of a scalar function, element by element."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (fn(above) - fn(below)) / (2 * step)
    return gradient


def mask_squared_error(logits: NDArray[np.float64], masks: NDArray[np.uint8]) -> float:
    """Mean over all pixels of (1 / (1 + exp(-logit)) - mask)^2."""
    total = 0.0
    for logit, mask in zip(logits.flat, masks.flat, strict=True):
        total += (1 / (1 + math.exp(-logit)) - int(mask)) ** 2
    return total / logits.size


def mask_iou(logits: NDArray[np.float64], masks: NDArray[np.uint8]) -> float:
    """Mean over the images of the pixels in both masks over the pixels in either; no image may have neither."""
    overlaps = []
    for image_logits, image_mask in zip(logits, masks, strict=True):
        shared = covered = 0
        for logit, mask in zip(image_logits.flat, image_mask.flat, strict=True):
            predicted = 1 / (1 + math.exp(-logit)) >= 0.5
            shared += predicted and mask == 1
            covered += predicted or mask == 1
        overlaps.append(shared / covered)
    return sum(overlaps) / len(overlaps)
