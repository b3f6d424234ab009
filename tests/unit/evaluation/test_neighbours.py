"""Nearest neighbours among all images: against a sort of every row, with ties, whatever the split."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from reid.evaluation.distances import cosine_distances
from reid.evaluation.neighbours import Images, PartialNeighbours, neighbours_in_tiles, triangle_tiles
from tests.unit.evaluation.small_sets import random_embeddings


def neighbours_of(query, gallery, num_neighbours, num_parts=1):
    images = Images(query, gallery)
    parts = np.array_split(triangle_tiles(len(images)), num_parts)
    return PartialNeighbours.join([neighbours_in_tiles(images, num_neighbours, part) for part in parts])


def assert_as_sorted(query, gallery, num_neighbours, num_parts=1):
    """Compares with a stable sort of all distances, to the bit."""
    features = np.concatenate((query, gallery))
    distances = cosine_distances(features, features)
    order = np.argsort(distances, axis=1, kind="stable")[:, :num_neighbours]
    actual = neighbours_of(query, gallery, num_neighbours, num_parts)
    assert np.array_equal(actual.indices, order)
    assert np.array_equal(actual.distances, np.take_along_axis(distances, order, axis=1))
    assert np.array_equal(actual.farthest, distances.max(axis=1))


@pytest.mark.parametrize("num_parts", [1, 2, 5])
@pytest.mark.parametrize(
    ("sizes", "num_neighbours"), [((30, 300), 330), ((200, 1400), 21), ((1024, 513), 81), ((255, 2050), 21)]
)
def test_neighbours_are_those_of_a_stable_sort(sizes, num_neighbours, num_parts):
    query, gallery = (random_embeddings(seed, size).features for seed, size in enumerate(sizes))
    assert_as_sorted(query, gallery, num_neighbours, num_parts)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_duplicates_are_ordered_by_image(num_parts):
    generator = np.random.default_rng(3)
    few = random_embeddings(1, 9).features
    query, gallery = few[generator.integers(0, 9, 100)], few[generator.integers(0, 9, 1500)]
    assert_as_sorted(query, gallery, 30, num_parts)


@pytest.mark.parametrize("sizes", [(30, 300), (1300, 200), (1024, 513), (255, 2050), (1, 1030)])
def test_distances_of_queries_to_the_gallery_can_be_kept(sizes):
    query, gallery = (random_embeddings(seed, size).features for seed, size in enumerate(sizes))
    images = Images(query, gallery)
    kept = np.full(sizes, np.nan, np.float32)
    for tiles in np.array_split(triangle_tiles(len(images)), 3):
        neighbours_in_tiles(images, 5, tiles, kept)
    assert np.array_equal(kept, cosine_distances(query, gallery))


def test_a_block_across_queries_and_gallery_holds_both():
    query, gallery = random_embeddings(1, 5).features, random_embeddings(2, 7).features
    images, whole = Images(query, gallery), np.concatenate((query, gallery))
    assert np.array_equal(images.block(3, 9), whole[3:9])
    assert np.shares_memory(images.block(6, 9), gallery)
    assert np.array_equal(images.take(np.array([11, 0, 5])), whole[[11, 0, 5]])


def test_the_working_memory_is_small_and_does_not_grow_with_the_square():
    query, gallery = random_embeddings(1, 500, dim=8).features, random_embeddings(2, 9000, dim=8).features
    tracemalloc.start()
    neighbours_of(query, gallery, 21)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 9500 * 21 * 8 < peak < 40 * 2**20 < 4 * 9500**2 / 2
