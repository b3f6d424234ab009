"""Part boxes from attention maps: where most channels of PANet look, in K places from top to bottom (METHOD 2.1).

Each channel's map is cut at its mean; the centre of its largest connected component says where the channel looks.
Channels that look beside the vehicle are dropped, the centres of the others are clustered, and each cluster becomes a
box of fixed size.

The result depends on nothing but the maps: centres of cells are multiples of a half, so that sums over channels are
exact in any order, and the few distinct centres (at most 961 on a map of 16 x 16) are clustered in row order, each
with the number of its channels as weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from reid.contracts import Settings
from reid.parts import MAX_PARTS, uniform_stripes

_MAX_ITERATIONS: Final = 300
"""Of k-means; a guard against rounding that moves a point to and fro. Evenly spread centres have needed up to 60."""


class PartConfig(Settings):
    """Boxes and clustering; the defaults are METHOD 2.1."""

    num_parts: int = Field(default=3, ge=1, le=MAX_PARTS)
    """K: boxes of an image, each 1/K of its height."""
    width: float = Field(default=0.5, gt=0.0, le=1.0)
    """Of a box, as a share of the image's width."""
    seed: int = Field(default=0, ge=0)
    """Of the first centres of k-means, the same for every image."""
    restarts: int = Field(default=10, ge=1)
    """Runs of k-means; the one with the smallest squared distance counts."""
    max_outside: float = Field(default=0.5, ge=0.0, le=1.0)
    """A channel is dropped when more than this share of its component's cells lies outside the foreground."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartBoxes:
    """The parts of an image."""

    boxes: NDArray[np.float32]
    """(K, 4) from top to bottom: left, top, right, bottom as shares 0..1 of the image's width and height (0 and 1 are
    its edges, not pixel centres)."""
    fallback: bool
    """The boxes are uniform stripes, as fewer than K places were found."""
    channel_part: NDArray[np.int64]
    """(C,) box that each channel belongs to; -1: dropped. All -1 in a fallback."""


def part_boxes(
    attention: NDArray[np.floating], foreground: NDArray[np.bool_], config: PartConfig | None = None
) -> PartBoxes:
    """K boxes where the channels of an attention map look; uniform stripes where they look in fewer than K places.

    Source: PMANet section III-A2 for components, k-means and sizes. Ours adds: the threshold, the dropped channels, the
    order of the boxes, the shift into the image and the fallback (METHOD 2.1).

    Args:
        attention: (C, h, w) maps of one image.
        foreground: (h, w) True on the vehicle, at the size of the maps.
        config: Number and size of the boxes, clustering.

    Returns:
        The boxes, the same for channels in any order, and the box of each channel.

    Raises:
        ValueError: When the shapes do not fit or the maps are not finite.
    """
    config = config or PartConfig()
    centres = part_centres(attention, foreground, config.max_outside)
    channel_part = np.full(len(centres), -1, dtype=np.int64)
    kept = np.flatnonzero(~np.isnan(centres[:, 0]))
    # Sorted by row, then column: unique() orders by the first column first.
    points, point_of_channel, weights = np.unique(centres[kept, ::-1], axis=0, return_inverse=True, return_counts=True)
    if len(points) < config.num_parts:
        return PartBoxes(boxes=uniform_stripes(config.num_parts), fallback=True, channel_part=channel_part)
    clusters, cluster_of_point = k_means(
        points[:, ::-1], weights, config.num_parts, seed=config.seed, restarts=config.restarts
    )
    order = np.lexsort((clusters[:, 0], clusters[:, 1]))  # top to bottom, then left to right
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    channel_part[kept] = place[cluster_of_point[point_of_channel.ravel()]]
    height, width = foreground.shape
    boxes = _boxes_around(clusters[order] / (width, height), config.width)
    return PartBoxes(boxes=boxes, fallback=False, channel_part=channel_part)


def part_centres(
    attention: NDArray[np.floating], foreground: NDArray[np.bool_], max_outside: float = 0.5
) -> NDArray[np.float64]:
    """Where each channel looks: the centre of the bounding box of its largest component above its mean.

    Components are 8-connected; of equally large ones the one counts whose first cell, in row order, comes first. A
    constant map has no component.

    Args:
        attention: (C, h, w) maps of one image.
        foreground: (h, w) True on the vehicle.
        max_outside: Channels with a larger share of their component outside the foreground are dropped.

    Returns:
        (C, 2) x, y in cells, not a number for dropped channels.

    Raises:
        ValueError: When the shapes do not fit or the maps are not finite.

    Convention: (0, 0) is the map's top left edge and (w, h) its bottom right one; cell (0, 0) has its centre at 0.5.
    """
    # An empty picture would end the process: OpenCV does not check for it.
    if attention.ndim != 3 or attention.shape[1:] != foreground.shape or attention.size == 0:
        raise ValueError(
            "expected attention (C, h, w) and foreground (h, w), none of them 0, got"
            f" {attention.shape} and {foreground.shape}"
        )
    channels, height, width = attention.shape
    # float64 in one piece: a channel's mean is the same to the last bit wherever the channel stands.
    maps = np.ascontiguousarray(attention, dtype=np.float64)
    means = maps.reshape(channels, height * width).mean(axis=1)
    if not np.isfinite(means).all():
        channel = int(np.flatnonzero(~np.isfinite(means))[0])
        raise ValueError(f"attention map of channel {channel}: expected finite values, its mean is {means[channel]}")
    # All channels in one picture, an empty row below each: one call, and no component spans two channels.
    picture = np.zeros((channels, height + 1, width), dtype=np.uint8)
    picture[:, :height] = maps > means[:, None, None]
    picture = picture.reshape(-1, width)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(picture, connectivity=8, ltype=cv2.CV_32S)
    centres = np.full((channels, 2), np.nan)
    if count == 1:  # the background alone
        return centres

    cells = np.flatnonzero(picture)
    label_of_cell = labels.ravel()[cells]
    first_cell = np.empty(count, dtype=np.int64)
    first_cell[label_of_cell[::-1]] = cells[::-1]  # the last one written stays: the first in row order
    channel_of_label = first_cell // ((height + 1) * width)
    area = boxes[:, cv2.CC_STAT_AREA].astype(np.int64)
    # By channel, then the largest, then the first; label 0 is the background.
    order = 1 + np.lexsort((first_cell[1:], -area[1:], channel_of_label[1:]))
    found, first = np.unique(channel_of_label[order], return_index=True)
    largest = order[first]  # (found channels,) label

    outside = np.zeros((height + 1, width), dtype=bool)
    outside[:height] = ~foreground
    cells_outside = np.bincount(label_of_cell[outside.ravel()[cells % outside.size]], minlength=count)
    kept = cells_outside[largest] <= max_outside * area[largest]
    chosen = boxes[largest[kept]]
    top = chosen[:, cv2.CC_STAT_TOP] - found[kept] * (height + 1)
    centres[found[kept], 0] = chosen[:, cv2.CC_STAT_LEFT] + chosen[:, cv2.CC_STAT_WIDTH] / 2
    centres[found[kept], 1] = top + chosen[:, cv2.CC_STAT_HEIGHT] / 2
    return centres


def k_means(
    points: NDArray[np.float64], weights: NDArray[np.int64], num_clusters: int, *, seed: int, restarts: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The best of several runs of weighted k-means, each from centres chosen by k-means++.

    Source: Lloyd (1982); Arthur and Vassilvitskii (2007), one draw for each centre. A weight is a number of points at
    the same place: the result is that of all those points, at the cost of the distinct ones.

    Args:
        points: (M, 2) distinct points, M at least `num_clusters`.
        weights: (M,) positive.
        num_clusters: K.
        seed: Of the draws; the same arguments give the same result on every call.
        restarts: Of equally good runs the first one counts.

    Returns:
        (K, 2) centres in no particular order, and (M,) the nearest centre of each point.
    """
    fractions = np.random.default_rng(seed).random((restarts, num_clusters))
    starts = first_centres(points, weights, fractions)
    centres, nearest, cost = lloyd(points, weights, starts)
    best = int(cost.argmin())
    return centres[best], nearest[best]


def first_centres(
    points: NDArray[np.float64], weights: NDArray[np.int64], fractions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R, K, 2) points drawn by k-means++ with (R, K) fractions in [0, 1).

    The first one is drawn by weight, each further one by weight times squared distance to the nearest one drawn; so no
    point is drawn twice.
    """
    restarts, num_clusters = fractions.shape
    chosen = np.empty((restarts, num_clusters, 2))
    mass = np.broadcast_to(weights.astype(np.float64), (restarts, len(points)))
    for number in range(num_clusters):
        sums = mass.cumsum(axis=1)
        drawn = (sums > fractions[:, number, None] * sums[:, -1:]).argmax(axis=1)  # (R,)
        chosen[:, number] = points[drawn]
        gained = weights * _squared_distances(points, chosen[:, number, None])[:, 0]
        mass = gained if number == 0 else np.minimum(mass, gained)
    return chosen


def lloyd(
    points: NDArray[np.float64], weights: NDArray[np.int64], starts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Weighted k-means from given centres, R runs side by side, until no point changes its centre.

    A point between two centres goes to the one with the smaller number; a centre that loses all its points stays.

    Args:
        points: (M, 2).
        weights: (M,) positive.
        starts: (R, K, 2) first centres of each run.

    Returns:
        (R, K, 2) centres, (R, M) the nearest centre of each point, (R,) weighted sum of squared distances to it.
    """
    restarts, num_clusters, _ = starts.shape
    centres = starts.copy()
    groups = num_clusters * np.arange(restarts)[:, None]  # one range of bins for each run
    repeated = np.broadcast_to(weights, (restarts, len(points))).ravel()
    weighted = [np.broadcast_to(weights * points[:, axis], (restarts, len(points))).ravel() for axis in range(2)]
    nearest = _squared_distances(points, centres).argmin(axis=1)  # (R, M)
    for _ in range(_MAX_ITERATIONS):
        bins = (nearest + groups).ravel()
        size = restarts * num_clusters
        held = np.bincount(bins, repeated, size).reshape(restarts, num_clusters)
        for axis in range(2):
            sums = np.bincount(bins, weighted[axis], size).reshape(restarts, num_clusters)
            np.divide(sums, held, out=centres[:, :, axis], where=held > 0)
        before, nearest = nearest, _squared_distances(points, centres).argmin(axis=1)
        if np.array_equal(before, nearest):
            break
    cost = (_squared_distances(points, centres).min(axis=1) * weights).sum(axis=1)
    return centres, nearest, cost


def _squared_distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, 2) points, (R, K, 2) centres -> (R, K, M)."""
    # By subtraction, axis by axis: the same bits on every machine, which a matrix product does not promise.
    across = points[:, 0] - centres[:, :, 0, None]
    down = points[:, 1] - centres[:, :, 1, None]
    distances: NDArray[np.float64] = across * across + down * down
    return distances


def _boxes_around(centres: NDArray[np.float64], width: float) -> NDArray[np.float32]:
    """(K, 4) boxes of a share `width` and 1/K of the height around (K, 2) centres, shifted into the image."""
    size = np.array((width, 1 / len(centres)))
    near = np.clip(centres - size / 2, 0.0, 1 - size)
    return np.concatenate((near, np.minimum(near + size, 1.0)), axis=1).astype(np.float32)
