"""Ranks by counting: against a full sort of tuples, by hand, and in the cases where others go wrong."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reid.evaluation import bin_table, counting
from reid.evaluation.metrics import average_precision, cmc, inverse_negative_penalty, summarise
from reid.evaluation.ranking import PositiveRanks, rank_positives
from tests.reference import ranking as reference
from tests.unit.evaluation.small_sets import random_problem

GOLDEN = sorted((Path(__file__).resolve().parents[4] / "shared" / "golden").glob("rank_*.npz"))


def assert_same_ranks(problem, remove_junk=True):
    actual = rank_positives(*problem, remove_junk=remove_junk)
    expected = reference.ranks_of_positives(*problem, remove_junk)
    for query, (ranks, num_kept) in enumerate(expected):
        assert actual.ranks[actual.offsets[query] : actual.offsets[query + 1]].tolist() == ranks
        assert actual.num_kept[query] == num_kept
    return actual


@pytest.mark.skipif(not GOLDEN, reason="no golden files beside the repository (../shared/golden)")
@pytest.mark.parametrize("path", GOLDEN or [None], ids=lambda path: path.stem if path else "missing")
def test_golden_figures_are_reached(path):
    case = np.load(path, allow_pickle=False)
    ranks = rank_positives(case["distmat"], case["q_pids"], case["q_camids"], case["g_pids"], case["g_camids"])

    valid = case["valid"]
    # In rank_ties the fields without a prefix come from an unstable sort; ref_* orders ties by gallery index.
    assert summarise(ranks).mAP == pytest.approx(float(case["ref_mAP"]), abs=1e-6)
    np.testing.assert_allclose(average_precision(ranks)[valid], case["ref_AP"][valid], atol=1e-6)
    np.testing.assert_allclose(inverse_negative_penalty(ranks)[valid], case["ref_INP"][valid], atol=1e-6)
    places = range(1, int(case["max_rank"]) + 1)
    np.testing.assert_allclose([cmc(ranks, [k])[k] for k in places], case["ref_CMC"], atol=1e-6)
    assert np.isnan(average_precision(ranks)[~valid]).all()
    assert summarise(ranks).num_valid_queries == valid.sum() > 0


@settings(max_examples=150, deadline=None)
@given(
    distances=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 40)),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 0.5, 1.0, float("inf"), float("-inf"), 3e38, -1e-7]),
            st.floats(-2, 2, width=32),
        ),
    ),
    seed=st.integers(0, 1000),
    num_ids=st.integers(1, 4),
    remove_junk=st.booleans(),
)
def test_any_small_problem_ranks_as_the_sorted_tuples(distances, seed, num_ids, remove_junk):
    generator = np.random.default_rng(seed)
    num_queries, gallery_size = distances.shape
    codes = [
        generator.integers(0, num_ids, num_queries),
        generator.integers(-1, 3, num_queries),
        generator.integers(0, num_ids, gallery_size),
        generator.integers(-1, 3, gallery_size),
    ]
    assert_same_ranks((distances, *codes), remove_junk)


@pytest.mark.parametrize("levels", [None, 7, 200], ids=["distinct", "many ties", "some ties"])
@pytest.mark.parametrize("separation", [0.0, 0.2, 0.5], ids=["bad model", "fair model", "good model"])
def test_larger_galleries_rank_as_the_sorted_tuples(levels, separation):
    assert_same_ranks(random_problem(1, 9, 3000, num_ids=40, levels=levels, separation=separation))


@pytest.mark.parametrize("num_ids", [2, 12, 300], ids=lambda n: f"{n} ids")
def test_every_way_of_counting_gives_the_same_ranks(monkeypatch, num_ids):
    problem = random_problem(2, 7, 4000, num_ids=num_ids, levels=3000)
    chosen = []
    for near, direct, table in [(0, 1e9, 1e9), (1e9, 0, 1e9), (1e9, 1e9, 0)]:
        monkeypatch.setattr(counting, "_NEAR", near)
        monkeypatch.setattr(counting, "_NEAR_SURVIVOR", near)
        monkeypatch.setattr(counting, "_DIRECT", direct)
        monkeypatch.setattr(counting, "_DIRECT_CALL", direct)
        monkeypatch.setattr(counting, "_TABLE", table)
        monkeypatch.setattr(counting, "_TABLE_CALL", table)
        chosen.append(assert_same_ranks(problem).ranks)
    assert len(chosen[0]) > 0
    assert all(np.array_equal(chosen[0], other) for other in chosen[1:])


def force_tables(monkeypatch):
    for name, value in {"_NEAR": 1e9, "_TABLE": 0.0, "_TABLE_CALL": 0.0}.items():
        monkeypatch.setattr(counting, name, value)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("shift", [0.0, 1.0, -5.0, 100.0, 1000.0])
def test_tables_are_exact_at_any_scale_and_shift(monkeypatch, scale, shift):
    force_tables(monkeypatch)
    distances, *codes = random_problem(3, 4, 2500, num_ids=30)
    with np.errstate(over="ignore"):
        assert_same_ranks(((distances * np.float32(scale) + np.float32(shift)), *codes))


@pytest.mark.parametrize("outlier", [1e30, -1e30, np.inf, -np.inf, 3e38])
def test_outliers_do_not_disturb_a_table(monkeypatch, outlier):
    force_tables(monkeypatch)
    distances, *codes = random_problem(4, 3, 2500, num_ids=30)
    distances[:, ::17] = outlier
    assert_same_ranks((distances, *codes))


@pytest.mark.parametrize("column", [0, 1, 1023, 2490, 2498, 2499])
@pytest.mark.parametrize("by_table", [False, True], ids=["near", "table"])
def test_nan_anywhere_is_refused_with_the_query_named(monkeypatch, column, by_table):
    if by_table:
        force_tables(monkeypatch)
    distances, *codes = random_problem(5, 6, 2500, num_ids=30)
    distances[4, column] = np.nan
    with pytest.raises(ValueError, match="1 NaN in the row of query 4"):
        rank_positives(distances, *codes)


def test_nan_is_refused_where_no_query_has_a_positive():
    with pytest.raises(ValueError, match="1 NaN in the row of query 0"):
        rank_positives(np.array([[np.nan]], np.float32), *(np.array([code]) for code in (0, 0, 1, 0)))


def test_tables_without_opencv_5_are_the_same(monkeypatch):
    force_tables(monkeypatch)
    monkeypatch.setattr(cv2, "__version__", "4.13.0")
    assert_same_ranks(random_problem(6, 4, 2000, num_ids=25))


def test_more_positives_than_a_table_holds(monkeypatch):
    force_tables(monkeypatch)
    ranks = assert_same_ranks(random_problem(7, 3, 1200, num_ids=2))
    assert np.diff(ranks.offsets).min() > bin_table.MAX_TARGETS


def test_a_row_longer_than_a_piece_is_counted_in_pieces(monkeypatch):
    monkeypatch.setattr(counting, "PIECE", 700)
    assert_same_ranks(random_problem(8, 5, 3000, num_ids=20, levels=500))


def test_all_equal_distances_leave_the_order_of_the_gallery():
    ids = np.array([1, 0, 1, 0, 0])
    ranks = rank_positives(np.full((1, 5), 0.5, np.float32), np.array([0]), np.array([9]), ids, np.zeros(5, np.int64))
    assert ranks.ranks.tolist() == [2, 4, 5]


def test_perfect_and_worst_rankings_by_negative_distance():
    ids = np.array([0, 0, 1, 1, 1])
    cameras = np.zeros(5, np.int64)
    perfect = np.array([[-0.9, -0.8, -0.3, -0.2, -0.1]], np.float32)
    query = (np.array([0]), np.array([1]), ids, cameras)
    assert summarise(rank_positives(perfect, *query)).mAP == 1.0

    worst = summarise(rank_positives(-perfect, *query))
    assert worst.mAP == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert worst.cmc == {1: 0.0, 5: 1.0, 10: 1.0}
    assert worst.mINP == pytest.approx(2 / 5)


def test_junk_takes_no_place():
    distances = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    query = (np.array([0]), np.array([7]), np.array([0, 1, 0, 0]), np.array([7, 7, 8, 7]))
    assert rank_positives(distances, *query).ranks.tolist() == [2]
    assert rank_positives(distances, *query).num_kept.tolist() == [2]
    assert rank_positives(distances, *query, remove_junk=False).ranks.tolist() == [1, 3, 4]


def test_unknown_cameras_are_never_junk():
    codes = (np.array([0]), np.array([-1]), np.array([0, 1]), np.array([-1, -1]))
    assert rank_positives(np.array([[0.1, 0.2]], np.float32), *codes).ranks.tolist() == [1]


def test_queries_without_positives_are_skipped_and_counted():
    codes = (np.array([0, 5, 1]), np.array([0, 0, 3]), np.array([0, 1, 1]), np.array([1, 3, 3]))
    ranks = rank_positives(np.array([[0.3, 0.2, 0.1]] * 3, np.float32), *codes)
    metrics = summarise(ranks)
    assert (metrics.num_queries, metrics.num_valid_queries) == (3, 1)
    assert metrics.mAP == pytest.approx(1 / 3)


def test_blocks_of_queries_join_to_the_whole():
    distances, query_ids, query_cameras, *gallery = random_problem(9, 20, 300)
    whole = rank_positives(distances, query_ids, query_cameras, *gallery)
    parts = [
        rank_positives(distances[part], query_ids[part], query_cameras[part], *gallery)
        for part in (slice(0, 7), slice(7, 8), slice(8, 20))
    ]
    joined = PositiveRanks.join(parts)
    assert np.array_equal(joined.ranks, whole.ranks)
    assert np.array_equal(joined.offsets, whole.offsets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": np.zeros((2, 3))}, "expected float32 distances, got float64"),
        ({"distances": np.zeros((2, 4), np.float32)}, r"got \(2, 4\)"),
        ({"distances": np.zeros((2, 0), np.float32), "gallery_ids": np.zeros(0, int)}, "got an empty one"),
        ({"query_cameras": np.zeros(1, int)}, "each of the 2 queries, got 1"),
        ({"distances": np.zeros((3, 2), np.float32).T}, "contiguous rows"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(change, message):
    arguments = {
        "distances": np.zeros((2, 3), np.float32),
        "query_ids": np.zeros(2, int),
        "query_cameras": np.zeros(2, int),
        "gallery_ids": np.zeros(3, int),
        "gallery_cameras": np.zeros(3, int),
    }
    with pytest.raises(ValueError, match=message):
        rank_positives(**{**arguments, **change})


def test_a_ranking_that_breaks_ties_the_other_way_would_be_noticed():
    problem = random_problem(10, 10, 200, levels=10)
    ranks = rank_positives(*problem)
    flipped = rank_positives(problem[0][:, ::-1].copy(), *problem[1:3], problem[3][::-1], problem[4][::-1])
    assert summarise(ranks).mAP != pytest.approx(summarise(flipped).mAP, abs=1e-6)


@pytest.mark.parametrize("separation", [0.0, 0.4])
def test_ranking_needs_under_64_mb_beside_the_block(separation):
    problem = random_problem(11, 8, 1_200_000, num_ids=100_000, separation=separation)
    rank_positives(*random_problem(0, 1, 10))
    tracemalloc.start()
    rank_positives(*problem)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < peak < 64 * 2**20
