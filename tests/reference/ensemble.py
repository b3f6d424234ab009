"""The distance of an ensemble, one pair of images at a time in float64. Imports nothing of ours."""

from __future__ import annotations

import math


def distance(first, second, weights):
    """Weighted mean of cosine distances over what both images show.

    Args:
        first: A feature, or None, for each network.
        second: Likewise.
        weights: One for each network.
    """
    common = [number for number in range(len(weights)) if first[number] is not None and second[number] is not None]
    if not common:
        return math.inf
    total = math.fsum(weights[number] for number in common)
    parts = []
    for number in common:
        a, b = ([float(value) for value in image[number]] for image in (first, second))
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
        parts.append(weights[number] / total * (1 - dot / lengths))
    return math.fsum(parts)
