"""The ensemble's distance and its ranks: what a loop over pairs gives, whatever the blocks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from reid.evaluation.distances import LEAST_BUDGET_BYTES, TILE_COLUMNS, TILE_ROWS, rank_blocks
from reid.evaluation.ensemble import ensemble_distances, join_members, rank_ensemble, select_images
from reid.evaluation.extract import select_embeddings
from tests.reference import ensemble as reference
from tests.reference import ranking as reference_ranking
from tests.unit.evaluation.small_sets import random_embeddings

WEIGHTS = (10, 5, 5, 2, 1)
SHARES = (1.0, 0.5, 0.5, 0.7, 0.8)


def networks(num, seed=0, shares=SHARES):
    """Embeddings of `num` images by five networks, of which each knows a share of them, in an order of its own."""
    generator = np.random.default_rng(seed)
    whole = random_embeddings(seed, num, dim=16)
    found = []
    for number, share in enumerate(shares):
        features = random_embeddings(100 * number + seed, num, dim=8 + number).features
        known = generator.permutation(num)[: round(share * num)]
        found.append(
            replace(
                whole,
                features=features[known],
                vehicle_ids=whole.vehicle_ids[known],
                camera_ids=whole.camera_ids[known],
                samples=whole.samples[known],
            )
        )
    return found


def features_of(found, sample):
    """The feature of an image by each network, None where it has none."""
    places = [np.flatnonzero(network.samples == sample) for network in found]
    return [network.features[at[0]] if len(at) else None for network, at in zip(found, places, strict=True)]


@pytest.fixture(scope="module")
def problem():
    found = networks(90)
    ensemble = join_members(found, WEIGHTS)
    rows = np.arange(90)
    return found, select_images(ensemble, rows[:20]), select_images(ensemble, rows[20:])


def test_distances_are_those_of_a_loop_over_pairs(problem):
    found, query, gallery = problem
    expected = np.array(
        [
            [reference.distance(features_of(found, q), features_of(found, g), WEIGHTS) for g in gallery.samples]
            for q in query.samples
        ]
    )
    actual = ensemble_distances(query, gallery)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    without_planes = np.array(
        [
            [reference.distance(features_of(found, q)[:1], features_of(found, g)[:1], (1,)) for g in gallery.samples]
            for q in query.samples
        ]
    )
    assert np.abs(without_planes - actual).max() > 0.1


def test_ranks_are_those_of_a_full_sort(problem):
    _, query, gallery = problem
    distances = ensemble_distances(query, gallery)
    for remove_junk in (True, False):
        expected = reference_ranking.ranks_of_positives(
            distances, query.vehicle_ids, query.camera_ids, gallery.vehicle_ids, gallery.camera_ids, remove_junk
        )
        ranks = rank_ensemble(query, gallery, remove_junk=remove_junk)
        parts = np.split(ranks.ranks, ranks.offsets[1:-1])
        assert [part.tolist() for part in parts] == [found for found, _ in expected]
        assert ranks.num_kept.tolist() == [kept for _, kept in expected]
        assert sum(map(len, parts)) > 50


def test_two_known_images_by_hand():
    """Both show front and top, one the back, the other the side: weights 10, 5 and 1 of 16."""
    unit = np.eye(2, dtype=np.float32)
    half = np.array([[0.5, np.sqrt(0.75)]], np.float32)
    first = networks(2, shares=(1.0,))[0]
    found = [
        replace(first, features=np.concatenate((unit[:1], half)), samples=np.array([0, 1])),  # distance 0.5
        replace(first, features=unit, samples=np.array([0, 1])),  # 1
        _of_one(first, unit[:1], 0),
        _of_one(first, unit[:1], 1),
        replace(first, features=unit[[0, 0]], samples=np.array([0, 1])),  # 0
    ]
    ensemble = join_members(found, WEIGHTS)
    actual = ensemble_distances(select_images(ensemble, np.array([0])), select_images(ensemble, np.array([1])))
    assert actual[0, 0] == pytest.approx((10 * 0.5 + 5 * 1 + 1 * 0) / 16, abs=1e-6)


def _of_one(embeddings, features, sample):
    return replace(
        embeddings,
        features=features,
        vehicle_ids=embeddings.vehicle_ids[[sample]],
        camera_ids=embeddings.camera_ids[[sample]],
        samples=np.array([sample]),
    )


def test_one_network_alone_ranks_as_without_an_ensemble():
    whole = random_embeddings(5, 400)
    rows = np.arange(400)
    expected = rank_blocks(select_embeddings(whole, rows[:60]), select_embeddings(whole, rows[60:]), remove_junk=True)
    ensemble = join_members([whole, None], (8.0, 1.0))
    actual = rank_ensemble(select_images(ensemble, rows[:60]), select_images(ensemble, rows[60:]), remove_junk=True)
    assert np.array_equal(actual.ranks, expected.ranks)
    assert len(expected.ranks) > 500


def test_neither_budget_nor_split_changes_a_distance_or_a_rank():
    found = networks(5100, seed=3)
    ensemble = join_members(found, WEIGHTS)
    rows = np.arange(5100)
    query, gallery = select_images(ensemble, rows[:150]), select_images(ensemble, rows[150:])
    whole = ensemble_distances(query, gallery)
    order = np.random.default_rng(0).permutation(4950)
    moved = ensemble_distances(select_images(ensemble, rows[7:9]), select_images(ensemble, rows[150:][order]))
    assert np.array_equal(moved, whole[7:9][:, order])
    expected = rank_ensemble(query, gallery, remove_junk=True)
    features = 4 * 12 * (TILE_COLUMNS + TILE_ROWS)
    smallest = LEAST_BUDGET_BYTES + features
    actual = rank_ensemble(query, gallery, remove_junk=True, memory_budget_bytes=smallest)
    assert np.array_equal(actual.ranks, expected.ranks)
    with pytest.raises(ValueError, match="memory budget"):
        rank_ensemble(query, gallery, remove_junk=True, memory_budget_bytes=smallest - 1)


def test_equal_distances_are_ordered_by_the_gallery():
    whole = random_embeddings(1, 40)
    same = replace(whole, features=np.repeat(whole.features[:1], 40, axis=0))
    ensemble = join_members([same, replace(same, **_some(same, slice(0, 40, 2)))], (2.0, 1.0))
    query, gallery = select_images(ensemble, np.arange(10)), select_images(ensemble, np.arange(10, 40))
    distances = ensemble_distances(query, gallery)
    expected = reference_ranking.ranks_of_positives(
        np.zeros_like(distances), query.vehicle_ids, query.camera_ids, gallery.vehicle_ids, gallery.camera_ids, True
    )
    assert np.ptp(distances) == 0
    actual = rank_ensemble(query, gallery, remove_junk=True)
    assert actual.ranks.tolist() == [rank for found, _ in expected for rank in found]


def _some(embeddings, chosen):
    names = ("features", "vehicle_ids", "camera_ids", "samples")
    return {name: getattr(embeddings, name)[chosen] for name in names}


def test_images_without_anything_in_common_come_last():
    """Without the network of whole images, a front and a back have no distance."""
    whole = random_embeddings(1, 3)
    ensemble = join_members([whole, replace(whole, **_some(whole, slice(0, 2)))], (1.0, 1.0))
    ensemble = replace(ensemble, members=ensemble.members[1:])
    distances = ensemble_distances(select_images(ensemble, np.array([0])), select_images(ensemble, np.array([1, 2])))
    assert math.isinf(distances[0, 1])
    assert distances[0, 0] < 2


def test_what_does_not_fit_is_refused():
    whole = random_embeddings(1, 10)
    with pytest.raises(ValueError, match="weight > 0 for each of 2"):
        join_members([whole, whole], (1.0, 0.0))
    with pytest.raises(ValueError, match="index row 10"):
        join_members([whole, replace(whole, samples=whole.samples + 3)], (1.0, 1.0))
    with pytest.raises(ValueError, match="first network"):
        join_members([None, whole], (1.0, 1.0))
    with pytest.raises(ValueError, match="1 have none"):
        select_images(join_members([whole], (1.0,)), np.array([3, 99]))
    one, other = join_members([whole], (1.0,)), join_members([random_embeddings(1, 10, dim=5)], (1.0,))
    with pytest.raises(ValueError, match=r"32.*5"):
        rank_ensemble(one, other, remove_junk=True)
