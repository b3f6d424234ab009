"""Figures from ranks: against their definitions written as loops."""

from __future__ import annotations

import numpy as np
import pytest

from reid.evaluation.metrics import (
    average_precision,
    inverse_negative_penalty,
    summarise,
    trapezoid_average_precision,
)
from reid.evaluation.ranking import PositiveRanks, rank_positives
from tests.reference import ranking as reference
from tests.unit.evaluation.small_sets import random_problem


@pytest.fixture(scope="module")
def problem():
    return random_problem(1, 30, 150, num_ids=20)


def test_all_figures_equal_their_definitions(problem):
    expected = reference.figures(reference.ranks_of_positives(*problem, True))
    actual = summarise(rank_positives(*problem))

    assert 0 < expected["mAP"] < 1
    assert actual.mAP == pytest.approx(expected["mAP"], abs=1e-12)
    assert actual.mINP == pytest.approx(expected["mINP"], abs=1e-12)
    assert actual.cmc == pytest.approx(expected["cmc"], abs=1e-12)
    assert actual.num_valid_queries == expected["num_valid"]


def test_trapezoid_precision_equals_the_official_loop(problem):
    ranks = rank_positives(*problem)
    expected = [
        reference.trapezoid_average_precision(own, kept) if own else np.nan
        for own, kept in reference.ranks_of_positives(*problem, True)
    ]
    actual = trapezoid_average_precision(ranks)
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    assert not np.allclose(actual, average_precision(ranks), equal_nan=True)


def test_the_trapezoid_figure_is_only_given_on_request(problem):
    ranks = rank_positives(*problem)
    assert summarise(ranks).trapezoid_mAP is None
    with_trapezoid = summarise(ranks, trapezoid=True)
    assert with_trapezoid.trapezoid_mAP is not None
    assert with_trapezoid.trapezoid_mAP < with_trapezoid.mAP


def test_figures_per_query_by_hand():
    ranks = PositiveRanks(offsets=np.array([0, 3, 3, 4]), ranks=np.array([1, 3, 6, 2]), num_kept=np.array([8, 8, 8]))
    np.testing.assert_allclose(average_precision(ranks), [(1 + 2 / 3 + 3 / 6) / 3, np.nan, 1 / 2])
    np.testing.assert_allclose(inverse_negative_penalty(ranks), [3 / 6, np.nan, 1 / 2])


def test_nothing_to_average_is_an_error():
    ranks = PositiveRanks(offsets=np.array([0, 0, 0]), ranks=np.array([], int), num_kept=np.array([5, 5]))
    with pytest.raises(ValueError, match="got 0 of 2"):
        summarise(ranks)
