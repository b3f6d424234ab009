"""The batch plan: exact P x K, every image seen, the same for every number of workers, refusals with the arithmetic."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid.data.draws import Purpose, epoch_integers, step_fractions
from reid.data.plan import (
    IdentityTable,
    PlanConfig,
    exposure,
    identity_table,
    lanes_of_worker,
    plan_epoch,
    steps_in_epoch,
)
from reid.data.plan_order import _spread
from tests.reference.sampling import least_steps, times_shown, violations

WORLDS = (1, 2, 3, 4, 6, 12)


def listing(counts: list[int], num_shards: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows (every third number), labels and shards of identities with so many images."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return 3 * np.arange(len(labels)) + 1, labels, labels * num_shards // len(counts)


def table_of(counts: list[int], num_shards: int, config: PlanConfig) -> IdentityTable:
    return identity_table(*listing(counts, num_shards), config)


def veri_like(num_shards: int = 64) -> tuple[list[int], int]:
    """576 identities with 37,778 images of unequal numbers, some very few, as in VeRi's training set."""
    weights = np.random.default_rng(0).lognormal(0, 0.6, 576)
    counts = np.maximum(1, np.round(weights / weights.sum() * 37_778)).astype(int).tolist()
    counts[:6] = [1, 1, 2, 2, 3, 3]
    return counts, num_shards


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    num_shards=st.integers(1, 8),
    P=st.integers(1, 12),
    K=st.integers(1, 6),
    window=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 300),
)
def test_every_plan_is_p_by_k_and_shows_every_image(
    counts: list[int], num_shards: int, P: int, K: int, window: int, seed: int, epoch: int
) -> None:
    P = min(P, len(counts))
    config = PlanConfig(identities_per_batch=P, images_per_identity=K, shuffle_window_shards=window)
    rows, labels, _ = listing(counts, num_shards)
    table = table_of(counts, num_shards, config)
    plan = plan_epoch(table, config, seed=seed, epoch=epoch)
    assert plan.dtype == np.int64
    assert plan.flags.c_contiguous
    identity_of_row = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    assert violations(plan.tolist(), identity_of_row, P, K) == []
    assert steps_in_epoch(table, config, seed=seed, epoch=epoch) == len(plan) >= least_steps(counts, P, K)


def test_the_oracle_notices_wrong_plans() -> None:
    config = PlanConfig(identities_per_batch=3, images_per_identity=2)
    rows, labels, _ = listing([4, 5, 6, 2], 2)
    identity_of_row = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    plan = plan_epoch(table_of([4, 5, 6, 2], 2, config), config, seed=0, epoch=0)
    assert violations(plan.tolist(), identity_of_row, 3, 2) == []
    twice = plan.copy()
    twice[1, 0] = twice[1, 1]
    mixed = plan.copy()
    mixed[0, 0, 0] = mixed[0, 1, 0]
    repeated = plan.copy()
    repeated[:, :, 1] = repeated[:, :, 0]
    for wrong in (twice, mixed, repeated, plan[:-1], plan[:, :2], plan[:, :, :1]):
        assert violations(wrong.tolist(), identity_of_row, 3, 2) != []


@pytest.mark.parametrize("seed", range(20))
def test_the_global_sequence_is_the_same_for_every_number_of_workers(seed: int) -> None:
    config = PlanConfig(identities_per_batch=12, images_per_identity=4)
    counts = np.random.default_rng(seed).integers(1, 25, 60).tolist()
    table = table_of(counts, 7, config)
    expected = plan_epoch(table, config, seed=seed, epoch=seed % 3).tobytes()
    for world in WORLDS:
        parts = []
        for worker in range(world):  # every worker makes its own plan
            lanes = lanes_of_worker(config, worker, world)
            parts.append(plan_epoch(table, config, seed=seed, epoch=seed % 3)[:, lanes.start : lanes.stop])
        assert {len(part) for part in parts} == {len(parts[0])}
        assert np.concatenate(parts, axis=1).tobytes() == expected


def test_the_plan_does_not_depend_on_the_order_in_which_images_are_listed() -> None:
    config = PlanConfig(identities_per_batch=4)
    rows, labels, shards = listing([3, 9, 5, 1, 8, 4, 4, 2], 3)
    expected = plan_epoch(identity_table(rows, labels, shards, config), config, seed=1, epoch=2)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(rows))
        table = identity_table(rows[order], labels[order], shards[order], config)
        np.testing.assert_array_equal(plan_epoch(table, config, seed=1, epoch=2), expected)


def test_epochs_and_seeds_give_different_plans() -> None:
    config = PlanConfig(identities_per_batch=4)
    table = table_of([3, 9, 5, 1, 8, 4, 4, 2], 3, config)
    plans = {plan_epoch(table, config, seed=seed, epoch=epoch).tobytes() for seed in range(4) for epoch in range(4)}
    assert len(plans) == 16


def test_plan_and_draws_are_what_they_were_on_the_first_machine() -> None:
    # recorded once; a difference means that checkpoints of older versions would resume with other batches
    config = PlanConfig(identities_per_batch=6, images_per_identity=3, shuffle_window_shards=2)
    table = table_of([5, 1, 12, 3, 7, 2, 9, 30, 4, 4, 6, 1, 8], 4, config)
    plan = plan_epoch(table, config, seed=123, epoch=7)
    assert hashlib.sha256(plan.astype("<i8").tobytes()).hexdigest()[:16] == "8a19d18c7401e470"
    assert epoch_integers(1, 2, Purpose.IMAGE_ORDER, 2).tolist() == [9991110473261175360, 17134531085617612585]
    assert step_fractions(1, 2, Purpose.CROP, 3, (1, 2)).tolist() == [[0.6714422399737551, 0.1692605257994344]]


def test_lanes_of_veri_are_balanced_and_its_epochs_equally_long() -> None:
    counts, num_shards = veri_like()
    config = PlanConfig()
    table = table_of(counts, num_shards, config)
    least = least_steps(counts, 16, 4)
    steps = [steps_in_epoch(table, config, seed=0, epoch=epoch) for epoch in range(10)]
    assert max(steps) <= 1.03 * least
    seen = exposure(plan_epoch(table, config, seed=0, epoch=0), table)
    assert seen.min_visits == 1
    assert seen.repeated_share < 0.05


@pytest.mark.parametrize("num_shards", [1, 5, 64])
def test_an_identity_never_follows_itself_in_a_veri_like_epoch(num_shards: int) -> None:
    counts, _ = veri_like()
    config = PlanConfig()
    table = table_of(counts, num_shards, config)
    identities = plan_epoch(table, config, seed=5, epoch=1)[:, :, 0]
    labels = np.empty(table.rows.max() + 1, dtype=np.int64)
    labels[table.rows] = np.repeat(table.labels, table.counts)
    consecutive = labels[identities[1:]] == labels[identities[:-1]]
    assert consecutive.sum() == 0


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_neighbours_are_separated_wherever_that_is_possible(ids: list[int]) -> None:
    values = np.array(ids)
    order = _spread(values)
    assert sorted(order.tolist()) == list(range(len(ids)))
    most = np.bincount(values).max()
    if most <= (len(ids) + 1) // 2:
        assert not np.any(values[order][1:] == values[order][:-1])


def test_a_lane_reads_a_shard_in_one_window_only() -> None:
    num_shards, window = 60, 4
    config = PlanConfig(identities_per_batch=2, shuffle_window_shards=window)
    rows, labels, shards = listing([8] * 600, num_shards)
    table = identity_table(rows, labels, shards, config)
    plan = plan_epoch(table, config, seed=0, epoch=0)
    shard_of_row = dict(zip(rows.tolist(), shards.tolist(), strict=True))
    for lane in range(2):
        read = [shard_of_row[row] for row in plan[:, lane, 0].tolist()]
        first = {shard: read.index(shard) for shard in set(read)}
        last = {shard: len(read) - 1 - read[::-1].index(shard) for shard in set(read)}
        open_shards = [sum(first[shard] <= step <= last[shard] for shard in first) for step in range(len(read))]
        # one window of whole shards and, at its ends, pieces of two more
        assert max(open_shards) <= window + 2
        assert len(first) > 5 * window


def test_identities_with_few_images_repeat_them_evenly_and_are_counted() -> None:
    config = PlanConfig(identities_per_batch=3, images_per_identity=4)
    table = table_of([1, 3, 2], 1, config)
    plan = plan_epoch(table, config, seed=0, epoch=0)
    visits = {tuple(sorted(np.unique(visit, return_counts=True)[1].tolist())) for visit in plan[0]}
    assert visits == {(4,), (1, 1, 2), (2, 2)}
    assert table.num_short(4) == 3


def test_identities_below_the_minimum_are_left_out() -> None:
    config = PlanConfig(identities_per_batch=2, images_per_identity=2, min_images_per_identity=3)
    table = table_of([2, 3, 1, 5], 2, config)
    assert table.labels.tolist() == [1, 3]
    assert table.num_left_out == 2
    shown = times_shown(plan_epoch(table, config, seed=0, epoch=0).tolist())
    assert set(shown) == set(table.rows.tolist())


def test_exposure_counts_as_the_oracle_does() -> None:
    config = PlanConfig(identities_per_batch=4, images_per_identity=3)
    table = table_of([3, 9, 5, 1, 8, 4, 4, 2], 3, config)
    plan = plan_epoch(table, config, seed=1, epoch=0)
    shown = times_shown(plan.tolist())
    actual = exposure(plan, table)
    assert (actual.min_visits, actual.max_visits) == (min(shown.values()), max(shown.values()))
    assert actual.mean_visits == pytest.approx(plan.size / 36)
    assert actual.repeated_share == pytest.approx(1 - 36 / plan.size)
    assert actual.repeated_share > 0
    assert f"{plan.size} slots = {len(plan)} steps x 12 for 36 images: each 1 to 3 times" in str(actual)


def test_a_plan_of_veri_wild_takes_under_a_second() -> None:
    weights = np.random.default_rng(0).lognormal(0, 0.8, 30_671)
    counts = np.maximum(1, np.round(weights / weights.sum() * 277_797)).astype(int).tolist()
    rows, labels, shards = listing(counts, 256)
    config = PlanConfig()
    seconds = []
    for _ in range(3):  # CPU time of the best of three: the machine may be busy
        started = time.process_time()
        table = identity_table(rows, labels, shards, config)
        plan = plan_epoch(table, config, seed=0, epoch=0)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1.0
    assert len(plan) <= 1.03 * least_steps(counts, 16, 4)


def test_too_few_identities_are_refused_with_the_numbers() -> None:
    config = PlanConfig(identities_per_batch=16, min_images_per_identity=2)
    expected = (
        r"needs 16 different identities, the training set has 3 \(2 more have fewer than 2 images\): .* at most 3"
    )
    with pytest.raises(ValueError, match=expected):
        table_of([2, 5, 1, 4, 1], 1, config)


@pytest.mark.parametrize(
    ("P", "K", "world", "message"),
    [
        (
            16,
            4,
            3,
            "global batch 64 = 16 identities x 4 images is not divisible by 3 workers: use 1, 2, 4, 8, 16 workers",
        ),
        (
            16,
            6,
            3,
            "16 identities per batch are not divisible by 3 workers (global batch 96 = 16 identities x 6 images",
        ),
        (4, 2, 8, "4 identities per batch are not divisible by 8 workers (global batch 8 = 4 identities x 2 images"),
    ],
)
def test_a_batch_that_the_workers_cannot_share_is_refused(P: int, K: int, world: int, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        lanes_of_worker(PlanConfig(identities_per_batch=P, images_per_identity=K), 0, world)
    assert message in str(caught.value)


def test_a_worker_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="worker 4 of 4 does not exist"):
        lanes_of_worker(PlanConfig(), 4, 4)


def test_rows_that_cannot_be_planned_are_refused() -> None:
    config = PlanConfig(identities_per_batch=1)
    zeros = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="row 8 has label -1"):
        identity_table(np.array([7, 8]), np.array([0, -1]), zeros, config)
    with pytest.raises(ValueError, match="row 7 is listed twice"):
        identity_table(np.array([7, 7]), zeros, zeros, config)
