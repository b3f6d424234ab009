"""Retrieval with several networks of which each sees some of the images only: one distance out of theirs.

Source: PPT section 4.4.2, the pixel-space ensemble: "the corresponding weights are selected and normalized to unit
length to keep the scale of the distance"; the distance of two images is the weighted sum over what both show. Ours
differs: the chosen weights are divided by their sum (what keeps the scale of a distance), and distances are cosine
distances, as everywhere here; the paper names neither norm nor distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from reid.contracts import Embeddings
from reid.evaluation.counting import Float32Array, Int64Array
from reid.evaluation.distances import TILE_COLUMNS, TILE_ROWS, rank_by_distances
from reid.evaluation.ranking import GalleryIdentities, PositiveRanks
from reid.products import row_products
from reid.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """What one network of an ensemble knows about N images."""

    weight: float
    """Greater than 0; only its ratio to the other members' matters."""
    features: Float32Array
    """(M, D) of length one, M <= N."""
    places: Int64Array
    """(N,) row in `features` of each image; -1: the network has no feature of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleEmbeddings:
    """What all networks of an ensemble know about N images."""

    members: tuple[Member, ...]
    vehicle_ids: Int64Array
    """(N,) identity codes."""
    camera_ids: Int64Array
    """(N,) camera codes; -1 when unknown."""
    samples: Int64Array
    """(N,) row of each image in the index."""

    def __len__(self) -> int:
        return len(self.samples)


def join_members(embeddings: Sequence[Embeddings | None], weights: Sequence[float]) -> EnsembleEmbeddings:
    """The ensemble over the images of the first network.

    Args:
        embeddings: Of each network, with `samples` in the rows of one index. The first has every image, the others some
            of them; None: a network without any.
        weights: Of each network, greater than 0.

    Raises:
        ValueError: As many weights as networks are needed, a weight is not positive, the first network has nothing, or
            another has an image that the first has not.
    """
    if len(weights) != len(embeddings) or not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"expected a weight > 0 for each of {len(embeddings)} networks, got {list(weights)}")
    whole = embeddings[0] if embeddings else None
    if whole is None or len(whole) == 0:
        raise ValueError("expected features of every image by the first network of an ensemble, got none")
    order = np.argsort(whole.samples, kind="stable")
    members = tuple(_member(whole.samples, order, *pair) for pair in zip(embeddings, weights, strict=True))
    return EnsembleEmbeddings(
        members=members, vehicle_ids=whole.vehicle_ids, camera_ids=whole.camera_ids, samples=whole.samples
    )


def _member(samples: Int64Array, order: Int64Array, embeddings: Embeddings | None, weight: float) -> Member:
    places = np.full(len(samples), -1, np.int64)
    if embeddings is None:
        return Member(weight=weight, features=np.zeros((0, 1), np.float32), places=places)
    at = np.minimum(np.searchsorted(samples, embeddings.samples, sorter=order), len(samples) - 1)
    strange = embeddings.samples[samples[order[at]] != embeddings.samples]
    if len(strange):
        raise ValueError(
            f"{len(strange)} images of a network are not among the {len(samples)} of the first one (first: index row"
            f" {strange[0]}): were they embedded from another data set?"
        )
    places[order[at]] = np.arange(len(embeddings))
    return Member(weight=weight, features=embeddings.features, places=places)


def select_images(ensemble: EnsembleEmbeddings, rows: NDArray[np.int64]) -> EnsembleEmbeddings:
    """The ensemble of the given rows of the index, in their order; features are shared, not copied.

    Raises:
        ValueError: A row is not there.
    """
    order = np.argsort(ensemble.samples, kind="stable")
    at = order[np.minimum(np.searchsorted(ensemble.samples, rows, sorter=order), len(order) - 1)]
    missing = rows[ensemble.samples[at] != rows]
    if len(missing):
        raise ValueError(f"expected features of {len(rows)} images, {len(missing)} have none (first: {missing[0]})")
    return EnsembleEmbeddings(
        members=tuple(replace(member, places=member.places[at]) for member in ensemble.members),
        vehicle_ids=ensemble.vehicle_ids[at],
        camera_ids=ensemble.camera_ids[at],
        samples=ensemble.samples[at],
    )


def ensemble_distances(
    query: EnsembleEmbeddings, gallery: EnsembleEmbeddings, out: Float32Array | None = None
) -> Float32Array:
    """Weighted mean of the cosine distances of those members that know both images.

    The bits of a distance depend on the two images alone: products come in tiles of one shape (see
    `cosine_distances`), everything else is done entry by entry, members in order.

    Args:
        query: Of Q images.
        gallery: Of N images, with the same members.
        out: (Q, N) float32 to write into.

    Returns:
        (Q, N) float32 in 0..2, up to rounding; infinite where no member knows both images.
    """
    if out is None:
        out = np.empty((len(query), len(gallery)), np.float32)
    out[:] = 0
    for left in range(0, len(gallery), TILE_COLUMNS):
        for mine, other in zip(query.members, gallery.members, strict=True):
            columns = _tile_features(other, left, TILE_COLUMNS)
            if columns is None:
                continue
            for top in range(0, len(query), TILE_ROWS):
                rows = _tile_features(mine, top, TILE_ROWS)
                if rows is None:
                    continue
                products = row_products(torch.from_numpy(rows), torch.from_numpy(columns)).numpy()
                target = out[top : top + TILE_ROWS, left : left + TILE_COLUMNS]
                # An image that a member does not know has zeros there, and so adds nothing.
                target += np.float32(mine.weight) * products[: target.shape[0], : target.shape[1]]
        for top in range(0, len(query), TILE_ROWS):
            target = out[top : top + TILE_ROWS, left : left + TILE_COLUMNS]
            weights = _common_weights(query, gallery, slice(top, top + TILE_ROWS), slice(left, left + TILE_COLUMNS))
            with np.errstate(divide="ignore", invalid="ignore"):
                np.divide(target, weights, out=target)
            np.subtract(1, target, out=target)
            target[weights == 0] = np.inf
    return out


def _tile_features(member: Member, start: int, num_rows: int) -> Float32Array | None:
    """Features of the images from `start` on in `num_rows` rows, zeros where there is none; None: none at all."""
    places = member.places[start : start + num_rows]
    known = np.flatnonzero(places >= 0)
    if len(known) == 0:
        return None
    features = np.zeros((num_rows, member.features.shape[1]), np.float32)
    features[known] = member.features[places[known]]
    return features


def _common_weights(
    query: EnsembleEmbeddings, gallery: EnsembleEmbeddings, rows: slice, columns: slice
) -> Float32Array:
    """Sum of the weights of the members that know both images of each pair."""
    total = np.zeros((len(query.samples[rows]), len(gallery.samples[columns])), np.float32)
    for mine, other in zip(query.members, gallery.members, strict=True):
        both = (mine.places[rows] >= 0)[:, None] & (other.places[columns] >= 0)
        total += np.float32(mine.weight) * both
    return total


def rank_ensemble(
    query: EnsembleEmbeddings,
    gallery: EnsembleEmbeddings,
    *,
    remove_junk: bool,
    memory_budget_bytes: int = 2**30,
    progress: Progress | None = None,
) -> PositiveRanks:
    """Exact ranks of all positives of all queries by the ensemble's distance, within a memory budget.

    Ties, junk and blocks are those of `rank_blocks`: neither the budget nor a split of the queries changes a rank.

    Args:
        query: Of the queries.
        gallery: Of the gallery, with the same members.
        remove_junk: Take out entries with the query's identity and camera.
        memory_budget_bytes: For blocks of distances, their ranking and a tile of features, beside the features.
        progress: Called after each block of queries.

    Raises:
        ValueError: If the members do not fit each other, or the budget is too small.
    """
    shapes = [[(m.features.shape[1], m.weight) for m in side.members if len(m.features)] for side in (query, gallery)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"expected the same members, got (feature size, weight) {shapes[0]} for the queries and {shapes[1]} for"
            " the gallery"
        )
    widest = max(member.features.shape[1] for member in query.members)

    def distances(rows: slice, columns: slice, out: Float32Array) -> Float32Array:
        return ensemble_distances(_part(query, rows), _part(gallery, columns), out=out)

    return rank_by_distances(
        distances,
        query.vehicle_ids,
        query.camera_ids,
        GalleryIdentities(gallery.vehicle_ids, gallery.camera_ids),
        remove_junk=remove_junk,
        memory_budget_bytes=memory_budget_bytes - 4 * widest * (TILE_COLUMNS + TILE_ROWS),
        progress=progress,
    )


def _part(ensemble: EnsembleEmbeddings, images: slice) -> EnsembleEmbeddings:
    return EnsembleEmbeddings(
        members=tuple(replace(member, places=member.places[images]) for member in ensemble.members),
        vehicle_ids=ensemble.vehicle_ids[images],
        camera_ids=ensemble.camera_ids[images],
        samples=ensemble.samples[images],
    )
