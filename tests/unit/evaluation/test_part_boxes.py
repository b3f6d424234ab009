"""Part boxes: components by flood fill, k-means without weights, and what every box must satisfy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from reid.evaluation.part_boxes import (
    PartConfig,
    first_centres,
    k_means,
    lloyd,
    part_boxes,
    part_centres,
)
from reid.parts import uniform_stripes
from tests.reference import part_boxes as reference

EVERYWHERE = np.ones((16, 16), dtype=bool)


def _maps(channels: int, height: int = 16, width: int = 16, seed: int = 0) -> NDArray[np.float32]:
    """Noise with a few smooth blobs, as attention maps have."""
    rng = np.random.default_rng(seed)
    noise = rng.random((channels, height, width)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(heat, (0, 0), 1.2) for heat in noise])


def _blobs(places: list[tuple[int, int]], height: int = 16, width: int = 16) -> NDArray[np.float32]:
    """One channel for each (row, column): a square of 3 x 3 cells around it."""
    maps = np.zeros((len(places), height, width), dtype=np.float32)
    for channel, (row, column) in enumerate(places):
        maps[channel, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 1
    return maps


def _foreground(height: int = 16, width: int = 16) -> NDArray[np.bool_]:
    inside = np.zeros((height, width), dtype=bool)
    inside[height // 5 : -(height // 5), width // 5 : -(width // 5)] = True
    return inside


def test_centres_equal_the_flood_fill_also_on_ties() -> None:
    smooth = _maps(150)
    rough = np.random.default_rng(1).integers(0, 3, (200, 7, 9)).astype(np.float32)
    sparse = (np.random.default_rng(2).random((150, 7, 9)) < 0.15).astype(np.float32)
    dropped = ties = diagonal = 0
    for maps in (smooth, rough, sparse):
        foreground = _foreground(*maps.shape[1:])
        actual = part_centres(maps, foreground)
        for heat, found in zip(maps, actual, strict=True):
            expected = reference.centre(heat, foreground, 0.5)
            if expected is None:
                assert np.isnan(found).all()
                dropped += 1
            else:
                assert tuple(found) == expected
            last = reference.centre(heat[::-1, ::-1], foreground, 0.5)  # the last one first
            ties += last is not None and (foreground.shape[1] - last[0], foreground.shape[0] - last[1]) != expected
            diagonal += reference.centre(heat, foreground, 0.5, neighbours=4) != expected
    assert dropped > 50
    assert ties > 10
    assert diagonal > 50


def test_channels_that_mostly_look_beside_the_vehicle_are_dropped() -> None:
    foreground = np.zeros((6, 8), dtype=bool)
    foreground[:, :4] = True
    maps = np.zeros((3, 6, 8))
    maps[0, 2, 3:5] = 1  # exactly half outside
    maps[1, 2, 3:6] = 1
    maps[2] = 0.3  # no component at all
    centres = part_centres(maps, foreground)
    assert centres[0].tolist() == [4.0, 2.5]
    assert np.isnan(centres[1:]).all()
    assert part_centres(maps, foreground, max_outside=0.7)[1].tolist() == [4.5, 2.5]
    assert np.isnan(part_centres(maps, foreground, max_outside=0.4)).all()


@pytest.mark.parametrize(("size", "num_parts", "width"), [((16, 16), 3, 0.5), ((7, 9), 2, 0.4), ((5, 6), 4, 1.0)])
def test_boxes_equal_those_of_plain_k_means_on_all_channels(
    size: tuple[int, int], num_parts: int, width: float
) -> None:
    rng = np.random.default_rng(4)
    maps = np.concatenate((_maps(60, *size), rng.integers(0, 3, (60, *size)).astype(np.float32)))
    foreground = _foreground(*size)
    for seed in range(4):
        config = PartConfig(num_parts=num_parts, width=width, seed=seed, restarts=3)
        fractions = np.random.default_rng(seed).random((3, num_parts))
        boxes, fallback, parts = reference.part_boxes(maps, foreground, num_parts, width, fractions, 0.5)
        actual = part_boxes(maps, foreground, config)
        assert not fallback
        assert not actual.fallback
        assert actual.boxes.dtype == np.float32
        np.testing.assert_allclose(actual.boxes, boxes, rtol=0, atol=1e-7)
        assert actual.channel_part.tolist() == parts
        assert len(set(parts)) == num_parts + 1  # every part, and dropped channels


def test_weighted_k_means_is_exactly_plain_k_means_of_the_repeated_points() -> None:
    rng = np.random.default_rng(2)
    for trial in range(20):
        cells = rng.permutation(list(product(range(1, 20), range(1, 20))))[:40]
        points = cells[np.lexsort((cells[:, 0], cells[:, 1]))] / 2
        weights = rng.integers(1, 6, 40)
        repeated = [tuple(point) for point in np.repeat(points, weights, axis=0).tolist()]
        fractions = rng.random((2, 4))
        starts = first_centres(points, weights, fractions)
        centres, owners, costs = lloyd(points, weights, starts)
        for run in range(2):
            assert starts[run].tolist() == [list(p) for p in reference.plus_plus(repeated, fractions[run].tolist())]
            expected = reference.lloyd(repeated, [tuple(start) for start in starts[run].tolist()])
            assert centres[run].tolist() == [list(c) for c in expected[0]], trial
            assert np.repeat(owners[run], weights).tolist() == expected[1]
            assert costs[run] == pytest.approx(expected[2], rel=1e-12)
            unweighted, *_ = lloyd(points, np.ones_like(weights), starts)
            assert unweighted[run].tolist() != centres[run].tolist()


def test_k_means_takes_the_best_run_and_is_about_as_good_as_opencvs() -> None:
    rng = np.random.default_rng(3)
    improved = 0
    for _ in range(10):
        points = np.unique(rng.integers(0, 32, (120, 2)), axis=0) / 2
        weights = rng.integers(1, 4, len(points))
        centres, owners = k_means(points, weights, 3, seed=0, restarts=10)
        distances = ((points[:, None] - centres) ** 2).sum(2)
        assert (owners == distances.argmin(1)).all()
        actual = float((weights * distances.min(1)).sum())
        *_, costs = lloyd(points, weights, first_centres(points, weights, np.random.default_rng(0).random((10, 3))))
        assert actual == pytest.approx(costs.min())
        improved += actual < 0.99 * costs[0]
        criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-6)
        repeated = np.repeat(points, weights, axis=0).astype(np.float32)
        cv2.setRNGSeed(0)
        expected, *_ = cv2.kmeans(repeated, 3, None, criteria, 30, cv2.KMEANS_PP_CENTERS)
        assert 0 < actual < 1.05 * expected
    assert improved > 0


def test_a_centre_without_points_stays_where_it_is() -> None:
    points, weights = np.array([[0.5, 0.5], [1.5, 0.5]]), np.array([3, 1])
    centres, owners, costs = lloyd(points, weights, np.array([[[1.0, 1.0], [9.0, 9.0]]]))
    assert centres.tolist() == [[[0.75, 0.5], [9.0, 9.0]]]
    assert owners.tolist() == [[0, 0]]
    assert costs[0] == pytest.approx(3 * 0.0625 + 0.5625)


def test_three_groups_of_channels_become_three_boxes_from_top_to_bottom() -> None:
    places = [(12, 8), (4, 6), (8, 10), (4, 7), (12, 7), (8, 11), (8, 10)]
    actual = part_boxes(_blobs(places), EVERYWHERE)
    assert actual.channel_part.tolist() == [2, 0, 1, 0, 2, 1, 1]
    centres = (actual.boxes[:, :2] + actual.boxes[:, 2:]) / 2
    expected = np.array([[7.0, 4.5], [10 + 1 / 3 + 0.5, 8.5], [8.0, 12.5]]) / 16
    np.testing.assert_allclose(centres, expected, atol=1e-6)
    assert not actual.fallback


def test_parts_side_by_side_are_ordered_from_left_to_right_and_shifted_inside() -> None:
    actual = part_boxes(_blobs([(1, 14), (1, 1)]), EVERYWHERE, PartConfig(num_parts=2))
    assert actual.boxes.tolist() == [[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5]]
    assert actual.channel_part.tolist() == [1, 0]


def test_too_few_places_give_uniform_stripes() -> None:
    for maps, foreground in (
        (_blobs([(4, 4), (9, 9), (4, 4)]), EVERYWHERE),
        (_blobs([(4, 4), (9, 9), (12, 4)]), ~EVERYWHERE),
        (np.full((5, 16, 16), 0.1, dtype=np.float32), EVERYWHERE),
    ):
        actual = part_boxes(maps, foreground)
        assert actual.fallback
        assert actual.channel_part.tolist() == [-1] * len(maps)
        np.testing.assert_array_equal(actual.boxes, uniform_stripes(3))
    two = part_boxes(_blobs([(4, 4), (9, 9), (4, 4)]), EVERYWHERE, PartConfig(num_parts=2))
    assert not two.fallback
    assert two.channel_part.tolist() == [0, 1, 0]


@pytest.mark.parametrize("num_parts", range(1, 8))
def test_stripes_cover_the_image_once(num_parts: int) -> None:
    stripes = uniform_stripes(num_parts)
    assert stripes.dtype == np.float32
    assert (stripes[:, 0] == 0).all()
    assert (stripes[:, 2] == 1).all()
    assert stripes[0, 1] == 0
    assert stripes[-1, 3] == 1
    assert all(above[3] == below[1] for above, below in pairwise(stripes))
    np.testing.assert_allclose(stripes[:, 3] - stripes[:, 1], 1 / num_parts, atol=1e-7)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_], PartConfig]:
    size = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    channels = draw(st.integers(1, 12))
    maps = draw(hnp.arrays(np.float32, (channels, *size), elements=st.sampled_from([0.0, 0.1, 0.2, 0.7])))
    foreground = draw(hnp.arrays(np.bool_, size))
    config = PartConfig(
        num_parts=draw(st.integers(1, 4)), width=draw(st.floats(0.05, 1)), restarts=3, max_outside=draw(st.floats(0, 1))
    )
    return maps, foreground, config


@settings(max_examples=150, deadline=None)
@given(case=_cases(), order_seed=st.integers(0, 9))
def test_any_maps_give_ordered_boxes_of_the_right_size_inside_the_image_whatever_the_channels_order(
    case: tuple[NDArray[np.float32], NDArray[np.bool_], PartConfig], order_seed: int
) -> None:
    maps, foreground, config = case
    actual = part_boxes(maps, foreground, config)
    boxes = actual.boxes.astype(np.float64)
    assert boxes.shape == (config.num_parts, 4)
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    width = 1.0 if actual.fallback else config.width
    np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], width, atol=2e-7)
    np.testing.assert_allclose(boxes[:, 3] - boxes[:, 1], 1 / config.num_parts, atol=2e-7)
    assert (np.diff(boxes[:, 1]) >= 0).all()

    centres = part_centres(maps, foreground, config.max_outside)
    known = ~np.isnan(centres[:, 0])
    assert actual.fallback == (len({tuple(centre) for centre in centres[known].tolist()}) < config.num_parts)
    if actual.fallback:
        assert (actual.channel_part == -1).all()
    else:
        assert ((actual.channel_part >= 0) == known).all()
        means = [centres[actual.channel_part == part].mean(0)[::-1].tolist() for part in range(config.num_parts)]
        assert means == sorted(means)

    order = np.random.default_rng(order_seed).permutation(len(maps))
    permuted = part_boxes(maps[order], foreground, config)
    np.testing.assert_array_equal(permuted.boxes, actual.boxes)
    np.testing.assert_array_equal(permuted.channel_part, actual.channel_part[order])


def test_the_same_boxes_on_every_call_in_any_thread_and_memory_order() -> None:
    maps, foreground = _maps(400), _foreground()
    expected = part_boxes(maps, foreground)
    strided = np.ascontiguousarray(maps.transpose(1, 2, 0)).transpose(2, 0, 1)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda one: part_boxes(one, foreground), [maps, strided, maps.astype(float)] * 4))
    for actual in results:
        np.testing.assert_array_equal(actual.boxes, expected.boxes)
        np.testing.assert_array_equal(actual.channel_part, expected.channel_part)
    assert set(expected.channel_part.tolist()) == {-1, 0, 1, 2}


def test_maps_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 16, 16\) and \(16, 8\)"):
        part_boxes(_blobs([(4, 4), (9, 9)]), np.ones((16, 8), dtype=bool))
    with pytest.raises(ValueError, match=r"got \(0, 16, 16\) and \(16, 16\)"):
        part_boxes(_blobs([]), EVERYWHERE)
    maps = _blobs([(4, 4), (9, 9), (2, 2)])
    maps[1, 3, 3] = np.nan
    with pytest.raises(ValueError, match=r"attention map of channel 1: expected finite values, its mean is nan"):
        part_boxes(maps, EVERYWHERE)
