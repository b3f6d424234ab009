"""The queries that a report shows."""

from __future__ import annotations

import numpy as np
import pytest

from reid.evaluation.distances import rank_blocks
from reid.evaluation.examples import choose_queries, nearest_entries
from reid.evaluation.metrics import average_precision
from tests.unit.evaluation.small_sets import random_embeddings


@pytest.fixture(scope="module")
def ranked():
    query = random_embeddings(1, 25, noise=2.0)
    gallery = random_embeddings(2, 120, first_sample=25, noise=2.0)
    return query, gallery, rank_blocks(query, gallery, remove_junk=True)


@pytest.mark.parametrize("num", [0, 1, 2, 3, 7, 12, 25, 60])
def test_queries_are_chosen_from_both_ends_and_the_middle_none_twice(ranked, num):
    query, _, ranks = ranked
    precisions = average_precision(ranks)
    chosen = choose_queries(ranks, query.vehicle_ids, num)
    positions = [position for _, position, _ in chosen]
    assert len(set(positions)) == len(positions) == min(num, 25)
    assert all(value == precisions[position] for _, position, value in chosen)
    hardest = [value for kind, _, value in chosen if kind == "hardest"]
    assert not num or min(hardest) == np.nanmin(precisions)
    assert num < 2 or chosen[0][2] == np.nanmax(precisions)
    assert [value for *_, value in chosen] == sorted([value for *_, value in chosen], reverse=True)


def test_each_third_shows_as_many_vehicles_as_it_can(ranked):
    query, _, ranks = ranked
    order = [position for _, position, _ in choose_queries(ranks, query.vehicle_ids, 25)]
    thirds = {"easiest": order[:8], "median": order[8:16], "hardest": order[16:]}
    repeats = set()
    for num in (6, 12, 24):
        chosen = choose_queries(ranks, query.vehicle_ids, num)
        for kind, third in thirds.items():
            positions = [position for own, position, _ in chosen if own == kind]
            assert set(positions) <= set(third)
            num_vehicles = len(set(query.vehicle_ids[positions]))
            assert num_vehicles == min(len(positions), len(set(query.vehicle_ids[third])))
            repeats.add(num_vehicles < len(positions))
    assert repeats == {True, False}


def test_a_rank_list_shows_the_ranks_that_were_counted(ranked):
    query, gallery, ranks = ranked
    lists = nearest_entries(query, gallery, list(range(25)), 120, remove_junk=True)
    for position, shown in enumerate(lists):
        counted = ranks.ranks[ranks.offsets[position] : ranks.offsets[position + 1]]
        assert (np.flatnonzero(shown.is_positive) + 1).tolist() == counted.tolist()
        assert len(shown.gallery_samples) == ranks.num_kept[position]
        assert shown.query_sample == query.samples[position]


def test_junk_is_shown_only_where_it_is_scored(ranked):
    query, gallery, _ = ranked
    (with_junk,) = nearest_entries(query, gallery, [0], 200, remove_junk=False)
    (without,) = nearest_entries(query, gallery, [0], 200, remove_junk=True)
    assert len(with_junk.gallery_samples) == 120
    assert len(without.gallery_samples) < 120
