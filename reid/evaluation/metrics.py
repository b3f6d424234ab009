"""mAP, CMC and mINP from the ranks of the positives.

All figures are fractions 0..1; they become percent only when printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.evaluation.ranking import PositiveRanks

DEFAULT_CMC_RANKS: Final = (1, 5, 10)

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalMetrics:
    """The figures of one evaluation, fractions 0..1, over the valid queries."""

    mAP: float  # noqa: N815 - the field's own spelling
    """Mean over valid queries of the (not interpolated) average precision."""
    cmc: dict[int, float]
    """Share of valid queries with a positive among the first k kept entries, by k."""
    mINP: float  # noqa: N815
    """Mean inverse negative penalty: number of positives over the rank of the last one."""
    num_queries: int
    num_valid_queries: int
    """Queries with at least one positive left; only these count."""
    trapezoid_mAP: float | None = None  # noqa: N815
    """mAP with the trapezoid rule of VeRi's official Matlab code: a second figure, never the headline."""


def _positive_numbers(ranks: PositiveRanks) -> Float64Array:
    """1, 2, 3 ... within each query."""
    counts = np.diff(ranks.offsets)
    numbers: Float64Array = (np.arange(len(ranks.ranks)) - np.repeat(ranks.offsets[:-1], counts) + 1).astype(np.float64)
    return numbers


def _mean_per_query(values: Float64Array, ranks: PositiveRanks) -> Float64Array:
    """Mean over each query's positives; NaN where a query has none."""
    counts = np.diff(ranks.offsets)
    sums = np.bincount(np.repeat(np.arange(len(counts)), counts), weights=values, minlength=len(counts))
    means: Float64Array = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return means


def average_precision(ranks: PositiveRanks) -> Float64Array:
    """(Q,) mean over the positives of the precision at each one; NaN for a query without positives.

    >>> ranks = PositiveRanks(offsets=np.array([0, 2]), ranks=np.array([1, 4]), num_kept=np.array([5]))
    >>> average_precision(ranks).tolist()
    [0.75]
    """
    return _mean_per_query(_positive_numbers(ranks) / ranks.ranks, ranks)


def trapezoid_average_precision(ranks: PositiveRanks) -> Float64Array:
    """(Q,) average precision by the trapezoid rule, as VeRi-776's and Market-1501's Matlab code computes it.

    Each positive contributes the mean of the precision at it and at the entry before it (1 before the first entry).

    >>> ranks = PositiveRanks(offsets=np.array([0, 2]), ranks=np.array([1, 4]), num_kept=np.array([5]))
    >>> round(float(trapezoid_average_precision(ranks)[0]), 6)
    0.708333
    """
    numbers = _positive_numbers(ranks)
    before = np.divide(numbers - 1, ranks.ranks - 1, out=np.ones(len(numbers)), where=ranks.ranks > 1)
    return _mean_per_query((before + numbers / ranks.ranks) / 2, ranks)


def inverse_negative_penalty(ranks: PositiveRanks) -> Float64Array:
    """(Q,) number of positives over the rank of the last one; NaN for a query without positives.

    Ye et al., "Deep Learning for Person Re-identification", 2021, equation 4.

    >>> ranks = PositiveRanks(offsets=np.array([0, 2]), ranks=np.array([1, 4]), num_kept=np.array([5]))
    >>> inverse_negative_penalty(ranks).tolist()
    [0.5]
    """
    counts = np.diff(ranks.offsets)
    valid = counts > 0
    result = np.full(len(counts), np.nan)
    result[valid] = counts[valid] / ranks.ranks[ranks.offsets[1:][valid] - 1]
    return result


def first_ranks(ranks: PositiveRanks) -> Float64Array:
    """(Q,) rank of the nearest positive; NaN for a query without positives."""
    valid = np.diff(ranks.offsets) > 0
    result = np.full(len(valid), np.nan)
    result[valid] = ranks.ranks[ranks.offsets[:-1][valid]]
    return result


def cmc(ranks: PositiveRanks, cmc_ranks: Sequence[int] = DEFAULT_CMC_RANKS) -> dict[int, float]:
    """Share of valid queries whose nearest positive is among the first k kept entries, by k.

    >>> ranks = PositiveRanks(offsets=np.array([0, 1, 2]), ranks=np.array([1, 4]), num_kept=np.array([5, 5]))
    >>> cmc(ranks)
    {1: 0.5, 5: 1.0, 10: 1.0}
    """
    first = first_ranks(ranks)
    first = first[~np.isnan(first)]
    return {k: float(np.mean(first <= k)) for k in cmc_ranks}


def summarise(
    ranks: PositiveRanks, *, cmc_ranks: Sequence[int] = DEFAULT_CMC_RANKS, trapezoid: bool = False
) -> RetrievalMetrics:
    """All figures of a set of queries.

    Raises:
        ValueError: If there are no queries, or none has a positive left: there is nothing to average.
    """
    num_queries = len(ranks)
    num_valid = int(np.count_nonzero(np.diff(ranks.offsets)))
    if num_valid == 0:
        raise ValueError(
            f"expected queries with a positive in the gallery, got 0 of {num_queries}; "
            "check that query and gallery share identities seen by different cameras"
        )
    return RetrievalMetrics(
        mAP=float(np.nanmean(average_precision(ranks))),
        cmc=cmc(ranks, cmc_ranks),
        mINP=float(np.nanmean(inverse_negative_penalty(ranks))),
        num_queries=num_queries,
        num_valid_queries=num_valid,
        trapezoid_mAP=float(np.nanmean(trapezoid_average_precision(ranks))) if trapezoid else None,
    )
