"""The obvious ranking: a full sort of Python tuples per query, every figure by definition. Slow on purpose."""

from __future__ import annotations

import math


def ranks_of_positives(distances, query_ids, query_cameras, gallery_ids, gallery_cameras, remove_junk):
    """For each query the 1-based ranks of its positives among the kept entries, and the number of kept entries."""
    result = []
    for row, vehicle, camera in zip(distances, query_ids, query_cameras, strict=True):
        entries = []
        for index, (distance, other, other_camera) in enumerate(zip(row, gallery_ids, gallery_cameras, strict=True)):
            same_camera = camera >= 0 and other_camera == camera
            if remove_junk and other == vehicle and same_camera:
                continue
            entries.append((float(distance), index, other == vehicle))
        entries.sort(key=lambda entry: (entry[0], entry[1]))
        ranks = [rank for rank, (_, _, positive) in enumerate(entries, start=1) if positive]
        result.append((ranks, len(entries)))
    return result


def average_precision(ranks):
    """Mean over the positives of the precision at each."""
    return math.fsum(number / rank for number, rank in enumerate(ranks, start=1)) / len(ranks)


def trapezoid_average_precision(ranks, num_kept):
    """The loop of the official Matlab code: recall times the mean of neighbouring precisions, entry by entry."""
    positives = set(ranks)
    area, old_recall, old_precision, found = 0.0, 0.0, 1.0, 0
    for rank in range(1, num_kept + 1):
        found += rank in positives
        recall, precision = found / len(ranks), found / rank
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def inverse_negative_penalty(ranks):
    """Number of positives over the rank of the last one."""
    return len(ranks) / ranks[-1]


def figures(all_ranks, cmc_ranks=(1, 5, 10)):
    """mAP, CMC, mINP and the number of valid queries."""
    valid = [ranks for ranks, _ in all_ranks if ranks]
    return {
        "mAP": math.fsum(average_precision(ranks) for ranks in valid) / len(valid),
        "cmc": {k: sum(ranks[0] <= k for ranks in valid) / len(valid) for k in cmc_ranks},
        "mINP": math.fsum(inverse_negative_penalty(ranks) for ranks in valid) / len(valid),
        "num_valid": len(valid),
    }
