"""The order of visits inside a lane of the batch plan: shards in windows, visits of one identity spread apart."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.data.draws import Purpose, as_fractions, epoch_integers

_IDENTITIES_IN_WINDOW: Final = 32
"""A window holds the visits of at least so many average identities: with fewer, each would come back too soon."""


def fill_lanes(
    visits: NDArray[np.int64], lanes: NDArray[np.int64], num_lanes: int, *, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Visits of each identity after random visits of the shorter lanes are done again: all lanes are then equally long.

    Args:
        visits: (I,) visits that each identity asks for.
        lanes: (I,) lane of each identity.
        num_lanes: P.
        seed: Seed of the run.
        epoch: 0-based.

    Returns:
        (I,) visits, at least those asked for; the sum over each lane is that of the longest.
    """
    random = epoch_integers(seed, epoch, Purpose.EXTRA_VISITS, int(visits.sum()))
    identity = np.repeat(np.arange(len(visits)), visits)
    identity = identity[np.lexsort((random, lanes[identity]))]
    loads = np.bincount(lanes, weights=visits, minlength=num_lanes).astype(np.int64)
    rank = np.arange(len(identity)) - np.repeat(np.cumsum(loads) - loads, loads)
    rounds, rest = np.divmod(loads.max() - loads, loads)
    lane = lanes[identity]
    extra = np.bincount(identity, weights=rounds[lane] + (rank < rest[lane]), minlength=len(visits))
    return visits + extra.astype(np.int64)


def order_visits(
    visits: NDArray[np.int64],
    lanes: NDArray[np.int64],
    shards: NDArray[np.int64],
    window_shards: int,
    *,
    seed: int,
    epoch: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put the visits of each lane in order.

    The shards of a lane come in shuffled order, in windows of about `window_shards` shards
    (or 32 identities, where shards are small); inside a window the visits
    are shuffled with those of one identity spread apart. An identity follows itself only where it has more than half
    of its window, and a lane reads a shard in one window only.

    Args:
        visits: (I,) visits of each identity, from `fill_lanes`.
        lanes: (I,) lane of each identity.
        shards: (I,) shard of each identity.
        window_shards: Shards to mix at a time.
        seed: Seed of the run.
        epoch: 0-based.

    Returns:
        Identity (0..I-1) and number of the visit (0..visits-1) of every visit, lane after lane.
    """
    steps = int(visits[lanes == 0].sum())
    windows = _windows(visits, lanes, shards, steps, window_shards, seed=seed, epoch=epoch)
    # visit j of an identity with v visits lies at (j + 0..1) / v of its window
    identity = np.repeat(np.arange(len(visits)), visits)
    number = np.arange(len(identity)) - np.repeat(np.cumsum(visits) - visits, visits)
    offset = as_fractions(epoch_integers(seed, epoch, Purpose.VISIT_OFFSET, len(visits)))[identity]
    jitter = as_fractions(epoch_integers(seed, epoch, Purpose.VISIT_JITTER, len(identity)))
    place = (number + 0.5 * offset + 0.5 * jitter) / visits[identity]
    order = np.lexsort((place, windows[identity], lanes[identity]))
    order = _separate_neighbours(order, identity, lanes, windows)
    return identity[order], number[order]


def _windows(
    visits: NDArray[np.int64],
    lanes: NDArray[np.int64],
    shards: NDArray[np.int64],
    steps: int,
    window_shards: int,
    *,
    seed: int,
    epoch: int,
) -> NDArray[np.int64]:
    """(I,) window of each identity in its lane; shards are shuffled in each lane and never divided between windows."""
    _, shard = np.unique(shards, return_inverse=True)
    num_shards = int(shard.max()) + 1
    parts, part = np.unique(lanes * num_shards + shard, return_inverse=True)
    part_visits = np.bincount(part, weights=visits).astype(np.int64)
    part_lane = parts // num_shards
    order = np.lexsort((epoch_integers(seed, epoch, Purpose.SHARD_ORDER, len(parts)), part_lane))
    # every lane has `steps` visits by now, so the visits before a part in its lane are these
    before = np.empty(len(parts), dtype=np.int64)
    before[order] = np.cumsum(part_visits[order]) - part_visits[order] - part_lane[order] * steps
    total = float(visits.sum())
    window_visits = max(window_shards * total / num_shards, _IDENTITIES_IN_WINDOW * total / len(visits))
    num_windows = max(1, round(steps / window_visits))
    return (before * num_windows // steps)[part]


def _separate_neighbours(
    order: NDArray[np.int64], identity: NDArray[np.int64], lanes: NDArray[np.int64], windows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Exchange visits inside their windows until no identity follows itself, wherever that is possible."""
    ids = identity[order]
    same = np.flatnonzero(ids[1:] == ids[:-1])
    if not len(same):
        return order
    order = order.copy()
    group = lanes[ids] * (int(windows.max()) + 1) + windows[ids]  # ascending
    for number in np.unique(group[same]).tolist():
        first, last = np.searchsorted(group, (number, number + 1))
        order[first:last] = order[first:last][_spread(ids[first:last])]
    return order


def _spread(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """A permutation near the given order after which equal ids are no neighbours; the order itself if there is none."""
    size = len(ids)
    _, code, counts = np.unique(ids, return_inverse=True, return_counts=True)
    keep = np.arange(size)
    if counts.max() > (size + 1) // 2:
        return keep
    here = keep.copy()
    padded = np.full(size + 2, -1, dtype=np.int64)  # an id of nobody at both ends
    padded[1:-1] = code
    for place in (np.flatnonzero(code[1:] == code[:-1]) + 1).tolist():
        moving, left, right = padded[place + 1], padded[place], padded[place + 2]
        if moving != left:  # settled by an earlier exchange
            continue
        inner = padded[1:-1]
        fits = (inner != left) & (inner != right) & (padded[:-2] != moving) & (padded[2:] != moving)
        fits[max(place - 1, 0) : place + 2] = False
        partners = np.flatnonzero(fits)
        if not len(partners):
            break
        partner = int(partners[np.abs(partners - place).argmin()])
        padded[[place + 1, partner + 1]] = padded[[partner + 1, place + 1]]
        here[[place, partner]] = here[[partner, place]]
    if not np.any(padded[1:] == padded[:-1]):
        return here
    # always possible: the most frequent ids first into the even places, then the odd ones
    frequent_first = np.lexsort((keep, code, -counts[code]))
    spread = np.empty(size, dtype=np.int64)
    spread[np.concatenate((keep[::2], keep[1::2]))] = frequent_first
    return spread
