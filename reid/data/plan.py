"""The batch plan: which images make up which batch of an epoch, as a pure function of (images, P, K, seed, epoch).

A batch has P slots, the lanes, with K images of one identity each. An identity with n images asks for ceil(n / K)
visits in an epoch; all its visits happen in one lane, so it never appears twice in a batch. Worker r of R owns lanes
[rP/R, (r+1)P/R): the global batches are the same for every number of workers, and resuming at step s means reading the
plan from row s on.

    images --identity_table--> IdentityTable --deal_lanes, fill_lanes, order_visits--> rows (steps, P, K)

An order that does not depend on the number of workers is MosaicML Streaming's "elastic determinism"; ours also keeps
P x K exact and the identities of a batch apart, which a flat order of samples cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from reid.contracts import Settings
from reid.data.draws import Purpose, epoch_integers
from reid.data.plan_lanes import deal_lanes
from reid.data.plan_order import fill_lanes, order_visits


class PlanConfig(Settings):
    """How the images of an epoch are put into batches."""

    identities_per_batch: int = Field(default=16, ge=1)
    """P: different identities in a global batch, over all workers together; a multiple of the number of workers."""
    images_per_identity: int = Field(default=4, ge=1)
    """K: images of each identity in a batch. An identity with fewer images repeats them within its K."""
    min_images_per_identity: int = Field(default=1, ge=1)
    """Identities with fewer training images are left out of the plan (their class stays in the classifier)."""
    shuffle_window_shards: int = Field(default=4, ge=1)
    """A lane mixes the visits of about this many shards at a time and then leaves them: larger mixes better, smaller
    needs less of the local cache when shards are remote."""

    @property
    def batch_size(self) -> int:
        """Images of a global batch, P x K."""
        return self.identities_per_batch * self.images_per_identity


class ImagePlanConfig(Settings):
    """Plain shuffled images, for what does not compare identities: every image is planned as an identity of its own.

    So the mechanism is the one of `plan_epoch`: each image once an epoch (a few twice, to fill the last batch), order
    and batches the same for any number of workers, each shard read by few lanes.
    """

    batch_size: int = Field(default=64, ge=1)
    """Images of a global batch, over all workers together; a multiple of the number of workers."""
    shuffle_window_shards: int = Field(default=4, ge=1)
    """A lane mixes the images of about this many shards at a time and then leaves them."""

    def as_identities(self) -> PlanConfig:
        """The plan of as many identities with one image each."""
        return PlanConfig(
            identities_per_batch=self.batch_size,
            images_per_identity=1,
            shuffle_window_shards=self.shuffle_window_shards,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityTable:
    """The training images by identity, in an order that does not depend on how they were listed."""

    rows: NDArray[np.int64]
    """(N,) rows of the index; the images of an identity are adjacent, identities in the order of their labels."""
    labels: NDArray[np.int64]
    """(I,) label of each identity, ascending."""
    shards: NDArray[np.int64]
    """(I,) shard of each identity: that of its first image (shards keep the images of an identity together)."""
    starts: NDArray[np.int64]
    """(I,) where each identity begins in `rows`."""
    counts: NDArray[np.int64]
    """(I,) images of each identity."""
    num_left_out: int
    """Identities left out by `min_images_per_identity`."""
    images_only: bool = False
    """Every image counts as an identity of its own (`ImagePlanConfig`)."""

    def replacements(self, row: int, shown: NDArray[np.int64]) -> NDArray[np.int64]:
        """Images to take in place of one that cannot be read: its identity's others, those not in `shown` first.

        In a plan of plain images any other one will do: those after it in the table, whatever else the worker shows, so
        that the batches stay the same for any number of workers.
        """
        at = int(np.flatnonzero(self.rows == row)[0])
        identity = int(np.searchsorted(self.starts, at, side="right")) - 1
        first, count = int(self.starts[identity]), int(self.counts[identity])
        own = self.rows[first : first + count] if not self.images_only else self.rows
        others = np.roll(own, -int(np.flatnonzero(own == row)[0]) - 1)[:-1]  # cyclic from the next one on
        if self.images_only:
            return others
        seen = np.isin(others, shown)
        return np.concatenate((others[~seen], others[seen]))

    def num_short(self, images_per_identity: int) -> int:
        """Identities with fewer than `images_per_identity` images: they repeat images within a visit."""
        return int(np.count_nonzero(self.counts < images_per_identity))


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure:
    """How often an epoch shows each image."""

    num_steps: int
    num_images: int
    """Images that the plan could show."""
    num_slots: int
    """steps x P x K."""
    min_visits: int
    """Visits of the least visited image: 1 or more by construction."""
    mean_visits: float
    max_visits: int
    repeated_share: float
    """Share of the slots that show an image again: 1 - images shown / slots."""

    def __str__(self) -> str:
        return (
            f"{self.num_slots:,} slots = {self.num_steps:,} steps x {self.num_slots // max(self.num_steps, 1)} for "
            f"{self.num_images:,} images: each {self.min_visits} to {self.max_visits} times, {self.mean_visits:.2f} on "
            f"average, {self.repeated_share:.1%} repeated"
        )


def identity_table(
    rows: NDArray[np.int64], labels: NDArray[np.int64], shards: NDArray[np.int64], config: PlanConfig
) -> IdentityTable:
    """Group the training images by identity and refuse what no plan can be made of.

    Args:
        rows: (N,) rows of the training images in the index, in any order.
        labels: (N,) class of each, >= 0.
        shards: (N,) shard of each.
        config: P, K and the smallest number of images an identity must have.

    Returns:
        The table that `plan_epoch` takes.

    Raises:
        ValueError: Negative labels, a row listed twice, or fewer identities than P.
    """
    rows, labels, shards = (np.asarray(column, dtype=np.int64) for column in (rows, labels, shards))
    if not len(rows) == len(labels) == len(shards):
        raise ValueError(f"rows, labels and shards differ in length: {len(rows)}, {len(labels)}, {len(shards)}")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"row {rows[labels.argmin()]} has label {labels.min()}: only training rows can be planned")
    order = np.lexsort((rows, labels))
    rows, labels, shards = rows[order], labels[order], shards[order]
    twice = rows[1:][(rows[1:] == rows[:-1]) & (labels[1:] == labels[:-1])]
    if len(twice):
        raise ValueError(f"row {twice[0]} is listed twice: every image of the plan must be listed once")

    identities, starts, counts = np.unique(labels, return_index=True, return_counts=True)
    kept = counts >= config.min_images_per_identity
    num_left_out = int(np.count_nonzero(~kept))
    if np.count_nonzero(kept) < config.identities_per_batch:
        left_out = f" ({num_left_out} more have fewer than {config.min_images_per_identity} images)"
        raise ValueError(
            f"a batch needs {config.identities_per_batch} different identities, the training set has "
            f"{np.count_nonzero(kept)}{left_out if num_left_out else ''}: "
            f"lower identities_per_batch to at most {np.count_nonzero(kept)}, or use more identities"
        )
    rows = rows[np.repeat(kept, counts)]
    counts = counts[kept].astype(np.int64)
    return IdentityTable(
        rows=rows,
        labels=identities[kept],
        shards=shards[starts[kept]],
        starts=np.cumsum(counts) - counts,
        counts=counts,
        num_left_out=num_left_out,
    )


def image_table(rows: NDArray[np.int64], shards: NDArray[np.int64], config: ImagePlanConfig) -> IdentityTable:
    """The table that `plan_epoch` takes for plain shuffled images: every row is an identity of its own.

    Raises:
        ValueError: A row listed twice, or fewer images than a batch holds.
    """
    if len(rows) < config.batch_size:
        raise ValueError(f"a batch needs {config.batch_size} images, there are {len(rows)}: lower batch_size")
    return replace(identity_table(rows, rows, shards, config.as_identities()), images_only=True)


def lanes_of_worker(config: PlanConfig | ImagePlanConfig, worker: int, num_workers: int) -> range:
    """The lanes [rP/R, (r+1)P/R) that worker r of R owns; P is the batch size where images are planned one by one.

    >>> lanes_of_worker(PlanConfig(identities_per_batch=16), worker=1, num_workers=4)
    range(4, 8)

    Args:
        config: P and K, or the batch size.
        worker: Rank of the worker, 0 <= worker < num_workers.
        num_workers: Workers that share the global batch.

    Raises:
        ValueError: The batch or its identities cannot be shared out evenly, or no such worker.
    """
    if not 0 <= worker < num_workers:
        raise ValueError(f"worker {worker} of {num_workers} does not exist: give 0 <= worker < num_workers")
    if isinstance(config, ImagePlanConfig):
        if config.batch_size % num_workers:
            raise ValueError(
                f"global batch {config.batch_size} images is not divisible by {num_workers} workers: change batch_size"
                f" to a multiple of {num_workers}"
            )
        config = config.as_identities()
    P, K = config.identities_per_batch, config.images_per_identity
    possible = ", ".join(str(n) for n in range(1, P + 1) if P % n == 0)
    if config.batch_size % num_workers:
        raise ValueError(
            f"global batch {config.batch_size} = {P} identities x {K} images is not divisible by "
            f"{num_workers} workers: "
            f"use {possible} workers, or change identities_per_batch to a multiple of {num_workers}"
        )
    if P % num_workers:
        raise ValueError(
            f"{P} identities per batch are not divisible by {num_workers} workers (global batch {config.batch_size} = "
            f"{P} identities x {K} images; all {K} images of an identity go to one worker): "
            f"use {possible} workers, or change identities_per_batch to a multiple of {num_workers}"
        )
    share = P // num_workers
    return range(worker * share, (worker + 1) * share)


def steps_in_epoch(table: IdentityTable, config: PlanConfig, *, seed: int, epoch: int) -> int:
    """Steps of `plan_epoch` without making the plan: the visits of the longest lane (a few more or less by epoch)."""
    visits = _visits(table, config)
    lanes = deal_lanes(visits, table.shards, config.identities_per_batch, seed=seed, epoch=epoch)
    return int(np.bincount(lanes, weights=visits).max())


def plan_epoch(table: IdentityTable, config: PlanConfig, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows of every batch of one epoch.

    Every image is visited at least once. The images of an identity are shuffled and cut into visits of K; the last
    visit is filled up from the beginning, so a visit has K different images whenever the identity has K. Lanes shorter
    than the longest revisit identities of their own.

    Args:
        table: The images, from `identity_table`.
        config: P, K, window.
        seed: Seed of the run, >= 0.
        epoch: 0-based.

    Returns:
        (steps, P, K) int64 rows of the index.
    """
    P, K = config.identities_per_batch, config.images_per_identity
    visits = _visits(table, config)
    lanes = deal_lanes(visits, table.shards, P, seed=seed, epoch=epoch)
    visits = fill_lanes(visits, lanes, P, seed=seed, epoch=epoch)
    identity, number = order_visits(visits, lanes, table.shards, config.shuffle_window_shards, seed=seed, epoch=epoch)
    key = epoch_integers(seed, epoch, Purpose.IMAGE_ORDER, len(table.rows))
    shuffled = table.rows[np.lexsort((key, np.repeat(np.arange(len(table.counts)), table.counts)))]
    position = (number[:, None] * K + np.arange(K)) % table.counts[identity][:, None]
    rows = shuffled[table.starts[identity][:, None] + position]  # (P * steps, K), lane after lane
    return np.ascontiguousarray(rows.reshape(P, -1, K).transpose(1, 0, 2))


def exposure(plan: NDArray[np.int64], table: IdentityTable) -> Exposure:
    """Count how often the epoch `plan` (steps, P, K) shows each image of `table`."""
    times = np.bincount(np.searchsorted(np.sort(table.rows), plan.ravel()), minlength=len(table.rows))
    return Exposure(
        num_steps=len(plan),
        num_images=len(table.rows),
        num_slots=int(plan.size),
        min_visits=int(times.min()),
        mean_visits=float(times.mean()),
        max_visits=int(times.max()),
        repeated_share=1.0 - float(np.count_nonzero(times)) / plan.size,
    )


def _visits(table: IdentityTable, config: PlanConfig) -> NDArray[np.int64]:
    """(I,) visits that each identity asks for, ceil(n / K)."""
    return -(-table.counts // config.images_per_identity)
