"""Re-ranking: golden files, a slow oracle, ties, the same bits whatever blocks and splits, and what is refused."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reid.evaluation import rerank as module
from reid.evaluation.distances import LEAST_BUDGET_BYTES, TILE_COLUMNS, TILE_ROWS, cosine_distances, normalised
from reid.evaluation.distances import rank_before_and_after as rank
from reid.evaluation.extract import join_embeddings, select_embeddings
from reid.evaluation.metrics import summarise
from reid.evaluation.neighbours import Images, PartialNeighbours, neighbours_in_tiles, triangle_tiles
from reid.evaluation.protocols import PROTOCOLS, EvaluationConfig, Trial
from reid.evaluation.ranking import PositiveRanks
from reid.evaluation.rerank import Encodings, Reranking, encode, expand, rerank
from reid.evaluation.rerank_config import RerankConfig, read_reranking, usual_reranking
from reid.evaluation.trials import evaluate_trials, rank_queries
from tests.reference import rerank as reference
from tests.unit.evaluation.small_sets import random_embeddings

GOLDEN = sorted((Path(__file__).resolve().parents[4] / "shared" / "golden").glob("rerank_*.npz"))


def reranked(query, gallery, config):
    """(Q, G) re-ranked distances, whole."""
    distances = cosine_distances(query, gallery)
    rerank(query, gallery, config).apply(distances, 0)
    return distances


def expected_distances(query, gallery, config):
    """The same by the oracle."""
    features = np.concatenate((query, gallery))
    distances = cosine_distances(features, features).tolist()
    return np.array(reference.rerank(distances, len(query), config.k1, config.k2, config.weight))


@pytest.mark.skipif(not GOLDEN, reason="no golden files beside the repository (../shared/golden)")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_distances_are_reached(path):
    golden = np.load(path, allow_pickle=False)
    config = RerankConfig(k1=int(golden["k1"]), k2=int(golden["k2"]), weight=float(golden["lam"]))
    actual = reranked(golden["q_feats"], golden["g_feats"], config)
    np.testing.assert_allclose(actual, golden["expected"], rtol=0, atol=1e-5)
    if config.weight < 1:
        assert np.abs(actual - golden["frj"]).max() > 1e-3


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_queries=st.integers(1, 8),
    gallery_size=st.integers(1, 40),
    num_ids=st.integers(1, 8),
    num_distinct=st.sampled_from([3, 12, 1000]),
    numbers=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    weight=st.sampled_from([0.0, 0.2, 0.3, 1.0]),
)
def test_distances_agree_with_the_oracle(seed, num_queries, gallery_size, num_ids, num_distinct, numbers, weight):
    num_images = num_queries + gallery_size
    k1 = 1 + int(numbers[0] * (num_images - 2))
    config = RerankConfig(k1=k1, k2=1 + int(numbers[1] * (k1 - 1)), weight=weight)
    features = random_embeddings(seed, min(num_images, num_distinct), dim=6, num_ids=num_ids).features
    features = features[np.random.default_rng(seed).integers(0, len(features), num_images)]
    assume(np.ptp(features, axis=0).any())
    query, gallery = features[:num_queries], features[num_queries:]
    expected = expected_distances(query, gallery, config)
    np.testing.assert_allclose(reranked(query, gallery, config), expected, rtol=0, atol=2e-6)


def test_the_oracle_and_we_change_the_order():
    query, gallery = random_embeddings(1, 6).features, random_embeddings(2, 50).features
    config = RerankConfig(k1=10, k2=4, weight=0.3)
    before, after = cosine_distances(query, gallery), reranked(query, gallery, config)
    assert (np.argsort(before, axis=1) != np.argsort(after, axis=1)).any(axis=1).all()
    wrong = expected_distances(query, gallery, config.model_copy(update={"k1": 9}))
    assert np.abs(after - wrong).max() > 1e-3


def test_images_that_are_all_the_same_stay_alike():
    query = np.tile(random_embeddings(1, 1).features, (3, 1))
    actual = reranked(query, np.tile(query, (4, 1)), RerankConfig(k1=5, k2=2, weight=0.3))
    assert np.isfinite(actual).all()
    assert np.ptp(actual[:, :2]) < 1e-6


def test_more_duplicates_than_neighbours_agree_with_the_oracle():
    one, other = random_embeddings(1, 2).features
    query, gallery = np.stack([one, other]), np.concatenate([np.tile(one, (12, 1)), np.tile(other, (7, 1))])
    config = RerankConfig(k1=4, k2=3, weight=0.3)
    np.testing.assert_allclose(
        reranked(query, gallery, config), expected_distances(query, gallery, config), rtol=0, atol=2e-6
    )


@pytest.fixture(scope="module")
def pair():
    return random_embeddings(3, 130, num_ids=60), random_embeddings(4, 4000, num_ids=60, first_sample=130)


CONFIG = RerankConfig(k1=20, k2=6, weight=0.3)


@pytest.fixture(scope="module")
def whole(pair):
    query, gallery = pair
    return rank(*pair, rerank(query.features, gallery.features, CONFIG).apply, remove_junk=True)


def same(left, right):
    return np.array_equal(left.ranks, right.ranks) and np.array_equal(left.offsets, right.offsets)


def test_re_ranking_helps_where_vehicles_form_clusters(whole):
    base, after = (summarise(ranks).mAP for ranks in whole)
    assert 0.2 < base < after - 0.02


@pytest.mark.parametrize("extra", [0, 4 * TILE_ROWS * TILE_COLUMNS, 4 * 80 * 4000])
def test_ranks_do_not_depend_on_the_memory_budget(pair, whole, extra):
    change = rerank(pair[0].features, pair[1].features, CONFIG).apply
    actual = rank(*pair, change, remove_junk=True, memory_budget_bytes=LEAST_BUDGET_BYTES + extra)
    assert all(map(same, actual, whole))


@pytest.mark.parametrize("budget", [LEAST_BUDGET_BYTES, 2 * LEAST_BUDGET_BYTES - 2, 2 * LEAST_BUDGET_BYTES, 2**30])
def test_ranks_do_not_depend_on_whether_distances_are_kept(pair, whole, budget):
    actual = rank_queries(*pair, remove_junk=True, rerank_config=CONFIG, memory_budget_bytes=budget)
    assert same(actual.base, whole[0])
    assert same(actual.reranked, whole[1])


def test_known_distances_are_not_computed_again(pair, whole):
    query, gallery = pair
    reversed_distances = 2 - cosine_distances(query.features, gallery.features)
    base, changed = rank(*pair, lambda *_: None, reversed_distances, remove_junk=True)
    assert not same(base, whole[0])
    assert same(base, changed)


@pytest.mark.parametrize("budget", [LEAST_BUDGET_BYTES, 2**30])
def test_features_that_cannot_be_compared_are_refused_before_re_ranking(pair, budget):
    query, gallery = pair
    options = {"remove_junk": True, "rerank_config": CONFIG, "memory_budget_bytes": budget}
    with pytest.raises(ValueError, match=r"expected gallery features of length 1, got 0\.5"):
        rank_queries(query, replace(gallery, features=gallery.features / 2), **options)
    with pytest.raises(ValueError, match="expected features of one size"):
        rank_queries(replace(query, features=query.features[:, 1:]), gallery, **options)


@pytest.mark.parametrize("num_workers", [2, 3, 7])
def test_ranks_do_not_depend_on_the_split_over_workers(pair, whole, num_workers):
    query, gallery = pair
    images = Images(query.features, gallery.features)
    tiles = np.array_split(triangle_tiles(len(images)), num_workers)
    neighbours = PartialNeighbours.join([neighbours_in_tiles(images, CONFIG.k1 + 1, some) for some in tiles])
    edges = np.linspace(0, len(images), num_workers + 1).astype(int).tolist()
    ranges = list(pairwise(edges))
    encodings = Encodings.join([encode(images, neighbours, CONFIG.k1, *some) for some in ranges])
    expanded = Encodings.join([expand(encodings, neighbours, CONFIG.k2, *some) for some in ranges])
    of_gallery = expanded.rows(len(query), len(images))
    parts = []
    for rows in np.array_split(np.arange(len(query)), num_workers):
        begin, end = int(rows[0]), int(rows[-1]) + 1
        change = Reranking(CONFIG.weight, expanded.rows(begin, end), neighbours.farthest[begin:end], of_gallery).apply
        parts.append(rank(select_embeddings(query, query.samples[rows]), gallery, change, remove_junk=True))
    for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert same(PositiveRanks.join(list(part)), expected)


def test_distances_do_not_depend_on_the_entries_handled_at_once(pair, monkeypatch):
    query, gallery = (part.features for part in pair)
    expected = reranked(query, gallery, CONFIG)
    monkeypatch.setattr(module, "_ENCODED_ENTRIES", 50_000)
    monkeypatch.setattr(module, "_EXPANDED_ENTRIES", 1_000)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 7)
    assert np.array_equal(reranked(query, gallery, CONFIG), expected)


def test_all_weight_on_the_original_distance_gives_the_base_ranking(pair):
    embeddings = join_embeddings(list(pair))
    (trial,) = evaluate_trials(
        embeddings, [Trial(name="all", query_rows=pair[0].samples, gallery_rows=pair[1].samples, remove_junk=True)],
        rerank_config=CONFIG.model_copy(update={"weight": 1.0}),
    )  # fmt: skip
    assert same(trial.reranked, trial.base)


def test_each_trial_is_re_ranked_by_itself(pair):
    embeddings = join_embeddings(list(pair))
    halves = [
        Trial(name=str(rest), query_rows=pair[0].samples, gallery_rows=pair[1].samples[rest::2], remove_junk=True)
        for rest in (0, 1)
    ]
    both = evaluate_trials(embeddings, halves, rerank_config=CONFIG)
    alone = [evaluate_trials(embeddings, [half], rerank_config=CONFIG)[0] for half in halves]
    for one, other in zip(both, alone, strict=True):
        assert same(one.reranked, other.reranked)
        assert same(one.base, other.base)
    assert not same(both[0].reranked, both[1].reranked)


def test_without_re_ranking_there_is_none(pair):
    trial = Trial(name="all", query_rows=pair[0].samples, gallery_rows=pair[1].samples, remove_junk=True)
    assert evaluate_trials(join_embeddings(list(pair)), [trial])[0].reranked is None


def test_nothing_of_the_size_of_all_pairs_is_held():
    query, gallery = random_embeddings(1, 500, dim=8).features, random_embeddings(2, 11_500, dim=8).features
    tracemalloc.start()
    rerank(query, gallery, CONFIG)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20 < 4 * 12_000**2 / 5


def test_a_neighbourhood_larger_than_the_set_is_refused():
    query, gallery = random_embeddings(1, 3).features, random_embeddings(2, 7).features
    with pytest.raises(ValueError, match="below the 10 images of queries and gallery, got k1 10"):
        rerank(query, gallery, RerankConfig(k1=10, k2=2))
    assert reranked(query, gallery, RerankConfig(k1=9, k2=2)).shape == (3, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k2": 21}, "k2 21 is larger than k1 20"),
        ({"weight": 1.5}, "less than or equal to 1"),
        ({"weight": -0.1}, "greater than or equal to 0"),
        ({"k1": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RerankConfig(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("20,6", "expected re-ranking as k1,k2,lambda such as 80,15,0.2, or auto; got '20,6'"),
        ("20,6,0.3,1", "got '20,6,0.3,1'"),
        ("on", "got 'on'"),
        ("6,20,0.3", "k2 20 is larger than k1 6"),
        ("20,6,2", r"lambda 2 is not in 0\.\.1"),
        ("20,6,nan", r"lambda nan is not in 0\.\.1"),
        ("20,0,0.3", "at least 1"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_reranking(text, "veri776")


def test_auto_is_what_each_protocol_is_published_with():
    words = {name: config and config.describe() for name in PROTOCOLS for config in [read_reranking("auto", name)]}
    assert words["veri776"] == words["veri776-raw"] == "re-ranking k1=80 k2=15 lambda=0.2"
    assert words["veriwild-large"] == words["table"] == words["cross-camera"] == "re-ranking k1=20 k2=6 lambda=0.3"
    assert words["vehicleid-small"] is None
    assert usual_reranking("vehicleid-large") is None
    assert EvaluationConfig().rerank is None


def test_features_that_cannot_be_compared_are_refused(pair):
    query, gallery = pair
    change = rerank(query.features, gallery.features, CONFIG).apply
    with pytest.raises(ValueError, match="gallery features of length 1"):
        rank(query, replace(gallery, features=2 * gallery.features), change, remove_junk=True)
    assert normalised(gallery.features).shape == gallery.features.shape
