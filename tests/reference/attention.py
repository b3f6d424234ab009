"""Trilinear attention entry by entry, in float64, written from Eq. 1 of PMANet."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def softmax(values: list[float]) -> list[float]:
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def trilinear(
    features: NDArray[np.float64], *, scaled: bool, over_first_dimension: bool = False, both_scaled: bool = False
) -> NDArray[np.float64]:
    """(C, H, W) -> (C, H, W). The last two options are mistakes, for tests that must fail with them."""
    channels, height, width = features.shape
    x = [[float(features[c, i, j]) for i in range(height) for j in range(width)] for c in range(channels)]
    scale = 1 / math.sqrt(height * width) if scaled else 1.0
    products = [
        [scale * sum(a * b for a, b in zip(x[c], x[d], strict=True)) for d in range(channels)] for c in range(channels)
    ]
    if over_first_dimension:
        columns = [softmax([products[c][d] for c in range(channels)]) for d in range(channels)]
        alike = [[columns[d][c] for d in range(channels)] for c in range(channels)]
    else:
        alike = [softmax(row) for row in products]
    outer = scale if both_scaled else 1.0
    mixed = [
        [outer * sum(alike[c][d] * x[d][cell] for d in range(channels)) for cell in range(height * width)]
        for c in range(channels)
    ]
    return np.array([softmax(row) for row in mixed]).reshape(channels, height, width)
