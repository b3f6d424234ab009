"""From features to figures in blocks: the same figures whatever the blocks, within the budget."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from reid.evaluation import distances as module
from reid.evaluation.distances import (
    LEAST_BUDGET_BYTES,
    TILE_COLUMNS,
    TILE_ROWS,
    WORKING_BYTES,
    block_shape,
    cosine_distances,
    evaluate_blocks,
    normalised,
    rank_blocks,
)
from reid.evaluation.extract import select_embeddings
from reid.evaluation.metrics import summarise
from reid.evaluation.ranking import PositiveRanks, rank_positives
from tests.unit.evaluation.small_sets import random_embeddings


def test_distances_agree_with_float64():
    query, gallery = random_embeddings(1, 70), random_embeddings(2, 2100)
    expected = 1 - query.features.astype(np.float64) @ gallery.features.T.astype(np.float64)
    actual = cosine_distances(query.features, gallery.features)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_distance_does_not_depend_on_its_place_in_the_block():
    query, gallery = random_embeddings(1, 150).features, random_embeddings(2, 5000).features
    whole = cosine_distances(query, gallery)
    generator = np.random.default_rng(0)
    rows, columns = generator.permutation(150), generator.permutation(5000)
    assert np.array_equal(cosine_distances(query[rows], gallery[columns]), whole[rows][:, columns])
    assert np.array_equal(cosine_distances(query[:1], gallery[:3]), whole[:1, :3])


def test_equal_features_have_equal_distances():
    query, gallery = random_embeddings(1, 5).features, random_embeddings(2, 3000).features
    gallery[2999] = gallery[7]
    actual = cosine_distances(query, gallery)
    assert np.array_equal(actual[:, 7], actual[:, 2999])


@pytest.fixture(scope="module")
def pair():
    return random_embeddings(3, 200, num_ids=30), random_embeddings(4, 5000, num_ids=30, first_sample=200)


@pytest.fixture(scope="module")
def whole(pair):
    return rank_blocks(*pair, remove_junk=True)


def test_one_block_ranks_as_its_distances(pair, whole):
    query, gallery = pair
    expected = rank_positives(
        cosine_distances(query.features, gallery.features),
        query.vehicle_ids,
        query.camera_ids,
        gallery.vehicle_ids,
        gallery.camera_ids,
    )
    assert np.array_equal(whole.ranks, expected.ranks)
    assert 0.1 < summarise(whole).mAP < 0.99


@pytest.mark.parametrize("extra", [0, 4 * TILE_ROWS * TILE_COLUMNS, 4 * 80 * 5000, 4 * 140 * 5000])
def test_ranks_do_not_depend_on_the_memory_budget(pair, whole, extra):
    shape = block_shape(len(pair[0]), len(pair[1]), LEAST_BUDGET_BYTES + extra)
    ranks = rank_blocks(*pair, remove_junk=True, memory_budget_bytes=LEAST_BUDGET_BYTES + extra)
    assert shape != (len(pair[0]), len(pair[1]))
    assert np.array_equal(ranks.ranks, whole.ranks)
    assert np.array_equal(ranks.num_kept, whole.num_kept)


def test_ranks_do_not_depend_on_the_split_over_workers(pair, whole):
    query, gallery = pair
    slices = [query.samples[part] for part in (slice(0, 13), slice(13, 150), slice(150, 200))]
    parts = [rank_blocks(select_embeddings(query, rows), gallery, remove_junk=True) for rows in slices]
    assert np.array_equal(PositiveRanks.join(parts).ranks, whole.ranks)


def test_the_budget_is_kept_for_a_gallery_that_does_not_fit():
    query, gallery = random_embeddings(5, 130, dim=8, num_ids=900), random_embeddings(6, 60_000, dim=8, num_ids=900)
    features = query.features.nbytes + gallery.features.nbytes
    tracemalloc.start()
    ranks = rank_blocks(query, gallery, remove_junk=True, memory_budget_bytes=LEAST_BUDGET_BYTES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert block_shape(130, 60_000, LEAST_BUDGET_BYTES)[1] < 60_000
    assert len(ranks.ranks) > 0
    assert peak < LEAST_BUDGET_BYTES + features


def test_progress_counts_queries(pair):
    seen = []
    budget = WORKING_BYTES + 4 * 130 * 5000
    rank_blocks(*pair, remove_junk=True, memory_budget_bytes=budget, progress=lambda *now: seen.append(now))
    assert seen == [(130, 200), (200, 200)]


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [
        (127, (256, 2 * TILE_COLUMNS)),  # so few full rows would waste more than cutting them does
        (128, (128, 4500)),
        (255, (255, 4500)),
        (511, (256, 4500)),
        (512, (512, 4500)),
        (700, (700, 4500)),
    ],
)
def test_full_rows_come_in_whole_tiles_where_a_tile_fits(num_rows, expected):
    assert block_shape(700, 4500, WORKING_BYTES + 4 * num_rows * 4500) == expected


def test_few_queries_need_little_memory_for_full_rows():
    assert block_shape(100, 128_517, WORKING_BYTES + 4 * 99 * 128_517) == (99, 128_517)
    assert block_shape(100, 128_517, WORKING_BYTES + 4 * 40 * 128_517) == (100, 50 * TILE_COLUMNS)


def test_too_small_a_budget_is_refused_with_the_least():
    with pytest.raises(ValueError, match=r"at least 25 MB for ranking, got 10\.0 MB"):
        block_shape(100, 100, 10 * 2**20)


def test_features_that_cannot_be_compared_are_refused(pair):
    query, gallery = pair
    with pytest.raises(ValueError, match=r"got \(31,\) for the queries and \(32,\)"):
        evaluate_blocks(replace(query, features=query.features[:, :31]), gallery, remove_junk=True)
    zero = gallery.features.copy()
    zero[17] = 0
    with pytest.raises(ValueError, match="gallery features of length 1, got 0 in row 17"):
        evaluate_blocks(query, replace(gallery, features=zero), remove_junk=True)


@pytest.mark.parametrize(("value", "message"), [(0.0, "row 3 is zero-norm"), (np.nan, "row 3 is non-finite")])
def test_features_without_a_direction_are_named(value, message):
    features = np.ones((5, 4))
    features[3] = value
    with pytest.raises(ValueError, match=message):
        normalised(features)


def test_an_empty_gallery_is_refused(pair):
    query, gallery = pair
    empty = select_embeddings(gallery, np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="gallery with at least one image, got an empty one"):
        module.evaluate_blocks(query, empty, remove_junk=True)
