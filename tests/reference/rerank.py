"""Re-ranking by k-reciprocal encoding as the paper tells it: sets, loops, every distance held. Slow on purpose."""

from __future__ import annotations

import math


def neighbour_lists(distances):
    """All images of each row by (distance, image)."""
    return [sorted(range(len(row)), key=lambda image, row=row: (row[image], image)) for row in distances]


def reciprocal(lists, image, k):
    """Images that are among the k + 1 first of `image` and have it among theirs."""
    return {other for other in lists[image][: k + 1] if image in lists[other][: k + 1]}


def rerank(distances, num_queries, k1, k2, weight):
    """(Q, N - Q) re-ranked distances as nested lists, from (N, N) distances of all images, queries first."""
    num_images = len(distances)
    original = [[value / max(row) for value in row] for row in distances]
    lists = neighbour_lists(distances)
    vectors = []
    for image in range(num_images):
        core = reciprocal(lists, image, k1)
        grown = set(core)
        for candidate in core:
            more = reciprocal(lists, candidate, round(k1 / 2))
            if 3 * len(more & core) > 2 * len(more):
                grown |= more
        weights = {other: math.exp(-original[image][other]) for other in grown}
        total = math.fsum(weights.values())
        vectors.append([weights.get(other, 0.0) / total if grown else 0.0 for other in range(num_images)])
    if k2 > 1:
        vectors = [
            [math.fsum(vectors[near][other] for near in lists[image][:k2]) / k2 for other in range(num_images)]
            for image in range(num_images)
        ]
    result = []
    for query in range(num_queries):
        row = []
        for other in range(num_queries, num_images):
            smaller = math.fsum(min(a, b) for a, b in zip(vectors[query], vectors[other], strict=True))
            jaccard = 1 - smaller / (2 - smaller)  # of vectors that sum to 1
            row.append((1 - weight) * jaccard + weight * original[query][other])
        result.append(row)
    return result
