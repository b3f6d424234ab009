"""Heat maps cell by cell, in float64: targets, loss and decoding, written from the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray


def gaussian_map(x: float, y: float, height: int, width: int, stride: int, sigma: float) -> NDArray[np.float64]:
    """One Gaussian at image point (x, y); column j of the map has its centre at image x = (j + 0.5) stride - 0.5."""
    target = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            centre_x, centre_y = (j + 0.5) * stride - 0.5, (i + 0.5) * stride - 0.5
            distance = math.hypot(centre_x - x, centre_y - y) / stride
            target[i, j] = math.exp(-(distance**2) / (2 * sigma**2))
    return target


def loss(maps: NDArray, keypoints: NDArray, stride: int, sigma: float, masked: bool) -> float:
    """(B, S, K, h, w) maps against (B, K, 3) points: squared errors of all cells and stacks over the number of maps."""
    images, stacks, count, height, width = maps.shape
    total = 0.0
    for b in range(images):
        for k in range(count):
            x, y, visible = keypoints[b, k]
            target = gaussian_map(x, y, height, width, stride, sigma) if visible else np.zeros((height, width))
            if masked and not visible:
                continue
            for s in range(stacks):
                for i in range(height):
                    for j in range(width):
                        total += (maps[b, s, k, i, j] - target[i, j]) ** 2
    return total / (images * count)


def quarter_peak(heat: NDArray) -> tuple[float, float, float]:
    """(x, y, height) of the first largest cell, moved a quarter cell towards the higher neighbour on each axis."""
    rows, columns = heat.shape
    best = (0, 0)
    for i in range(rows):
        for j in range(columns):
            if heat[i, j] > heat[best]:
                best = (i, j)
    i, j = best
    x, y = float(j), float(i)
    if 0 < j < columns - 1:
        x += 0.25 * (int(heat[i, j + 1] > heat[i, j - 1]) - int(heat[i, j + 1] < heat[i, j - 1]))
    if 0 < i < rows - 1:
        y += 0.25 * (int(heat[i + 1, j] > heat[i - 1, j]) - int(heat[i + 1, j] < heat[i - 1, j]))
    return x, y, float(heat[best])


def best_threshold(scores: NDArray, visible: NDArray, default: float) -> float:
    """Of all midpoints between neighbouring scores, the one with the largest F1; ties: the nearest to the default."""
    if not visible.any():
        return default
    values = sorted({*(float(s) for s in scores)})
    edges = [values[0] - 1e-6, *((a + b) / 2 for a, b in itertools.pairwise(values))]
    best = (-1.0, 0.0, default)
    for edge in edges:
        shown = scores > edge
        hits = sum(1 for s, v in zip(shown, visible, strict=True) if s and v)
        f1 = 2 * hits / (int(shown.sum()) + int(visible.sum()))
        best = max(best, (f1, -abs(edge - default), edge))
    return best[2]


def mass_around_peak(heat: NDArray, reach: int) -> float:
    """Sum of the cells at most `reach` rows and columns from the first largest one, over 2 pi."""
    rows, columns = heat.shape
    best = max(((i, j) for i in range(rows) for j in range(columns)), key=lambda cell: (heat[cell], -cell[0], -cell[1]))
    total = 0.0
    for i in range(rows):
        for j in range(columns):
            if abs(i - best[0]) <= reach and abs(j - best[1]) <= reach:
                total += float(heat[i, j])
    return total / (2 * math.pi)
