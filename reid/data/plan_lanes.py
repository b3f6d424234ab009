"""Dealing identities to the lanes of the batch plan: by pieces of shards, with nearly equal numbers of visits."""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.data.draws import Purpose, epoch_integers

_PIECES_PER_LANE: Final = 8
"""A shard with more than 1 / (8 P) of an epoch's visits is cut into runs of identities: lanes can be balanced."""


def deal_lanes(
    visits: NDArray[np.int64], shards: NDArray[np.int64], num_lanes: int, *, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Deal identities to lanes so that a shard goes to few lanes and the lanes get nearly equal numbers of visits.

    Whole shards (or runs of identities, where a shard is large) go in shuffled order to the least loaded lane; the last
    pieces, which would overfill it, are opened and their identities dealt largest first; exchanges of single identities
    between the longest and the shortest lane even out the rest. Identities that share a piece do not meet in a batch of
    this epoch; that is at most 1 / (8 P) of the visits.

    Args:
        visits: (I,) visits of each identity in the epoch, >= 1.
        shards: (I,) shard of each identity.
        num_lanes: P, at most I.
        seed: Seed of the run.
        epoch: 0-based.

    Returns:
        (I,) lane of each identity; every lane has at least one.
    """
    total = int(visits.sum())
    random = epoch_integers(seed, epoch, Purpose.IDENTITY_ORDER, len(visits))
    num_pieces = _PIECES_PER_LANE * num_lanes
    pieces = _pieces(visits, shards, random, num_pieces)
    if int(pieces.max()) + 1 < num_pieces // 2:  # a few identities hold most visits: deal all one by one
        pieces = np.arange(len(visits))
    piece_visits = np.bincount(pieces, weights=visits).astype(np.int64)

    order_key = epoch_integers(seed, epoch, Purpose.PIECE_ORDER, len(piece_visits))
    large_first = np.where(piece_visits * num_pieces > total, -piece_visits, 0)
    capacity = max(-(-total // num_lanes), int(visits.max()))
    loads = [(0, lane) for lane in range(num_lanes)]  # a heap: least loaded lane first
    lane_of_piece = np.full(len(piece_visits), -1, dtype=np.int64)
    for piece in np.lexsort((order_key, large_first)).tolist():
        load, lane = loads[0]
        size = int(piece_visits[piece])
        if load + size <= capacity:
            lane_of_piece[piece] = lane
            heapq.heapreplace(loads, (load + size, lane))
    lanes = lane_of_piece[pieces]

    opened = np.flatnonzero(lanes < 0)
    for identity in opened[np.lexsort((random[opened], -visits[opened]))].tolist():
        load, lane = loads[0]
        lanes[identity] = lane
        heapq.heapreplace(loads, (load + int(visits[identity]), lane))
    _even_out(lanes, visits, capacity, num_lanes)
    assert len(np.unique(lanes)) == num_lanes, "a lane without identities"
    return lanes


def _pieces(
    visits: NDArray[np.int64], shards: NDArray[np.int64], random: NDArray[np.uint64], num_pieces: int
) -> NDArray[np.int64]:
    """Number of the piece of each identity: its shard, or a run of its shard's shuffled identities of similar size."""
    order = np.lexsort((random, shards))
    shard = np.unique(shards[order], return_inverse=True)[1]
    size = visits[order]
    shard_visits = np.bincount(shard, weights=size).astype(np.int64)
    before = np.cumsum(size) - size - (np.cumsum(shard_visits) - shard_visits)[shard]
    runs = -(-shard_visits * num_pieces // int(visits.sum()))
    run = (2 * before + size) * runs[shard] // (2 * shard_visits[shard])
    piece = np.empty(len(visits), dtype=np.int64)
    piece[order] = np.unique(shard * (num_pieces + 1) + run, return_inverse=True)[1]
    return piece


def _even_out(lanes: NDArray[np.int64], visits: NDArray[np.int64], capacity: int, num_lanes: int) -> None:
    """Exchange identities between the longest and the shortest lane, in place, until nothing more is won."""
    loads = np.bincount(lanes, weights=visits, minlength=num_lanes).astype(np.int64)
    while loads.max() > capacity:
        longest, shortest = int(loads.argmax()), int(loads.argmin())
        gap = int(loads[longest] - loads[shortest])
        given, taken = np.flatnonzero(lanes == longest), np.flatnonzero(lanes == shortest)
        given_sizes, given_first = np.unique(visits[given], return_index=True)
        taken_sizes, taken_first = np.unique(visits[taken], return_index=True)
        # what the longest lane loses by giving one identity for another one (last column: for none)
        loss = given_sizes[:, None] - np.append(taken_sizes, 0)[None, :]
        if len(given) == 1:
            loss[:, -1] = 0  # a lane keeps at least one identity
        useful = np.where((loss > 0) & (loss < gap), np.abs(2 * loss - gap), gap + 1)
        give, take = np.unravel_index(int(useful.argmin()), useful.shape)
        if useful[give, take] > gap:
            return
        lanes[given[given_first[give]]] = shortest
        if take < len(taken_sizes):
            lanes[taken[taken_first[take]]] = longest
        loads[longest] -= loss[give, take]
        loads[shortest] += loss[give, take]
