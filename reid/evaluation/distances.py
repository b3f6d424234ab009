"""Cosine distances in blocks, the same bits whatever the size of the blocks, and the ranks that follow from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.contracts import Embeddings
from reid.evaluation.counting import PIECE, Counter, Float32Array
from reid.evaluation.metrics import RetrievalMetrics, summarise
from reid.evaluation.ranking import GalleryIdentities, PositiveRanks, RankSum
from reid.products import row_products
from reid.progress import Progress

logger = logging.getLogger(__name__)

DistanceChange = Callable[[Float32Array, int, int], None]
"""Changes a block of distances in place, given its first query and its first gallery index; each row by itself."""

BlockDistances = Callable[[slice, slice, Float32Array], Float32Array]
"""(queries, gallery entries, (Q, N) float32 to write into) -> the (Q, N) distances of that block, written there."""

TILE_ROWS: Final = 256
TILE_COLUMNS: Final = 1024
"""Distances are computed in tiles of exactly this shape, by PyTorch. A product's last bits depend on its operands'
shapes and, in some libraries (OpenBLAS in NumPy), on the place in the result; with oneDNN or MKL and one shape they
depend on the two features alone, so neither blocks nor workers change a figure. Elsewhere, ties within rounding might
swap. Lower tiles waste less on few queries and are slower: 64 x 2048 takes 1.6 times as long for each distance."""

WORKING_BYTES: Final = 24 * PIECE
"""Upper bound of what counting needs beside a block of distances."""
LEAST_BUDGET_BYTES: Final = WORKING_BYTES + 4 * TILE_ROWS * TILE_COLUMNS
"""What ranking needs at the least: counting, and one tile."""


def normalised(features: NDArray[np.floating], name: str = "features") -> Float32Array:
    """Rows scaled to length one, float32.

    Raises:
        ValueError: Naming the first row that has no direction (zero) or is not finite.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        what = "zero-norm" if lengths[bad[0]] == 0 else "non-finite"
        raise ValueError(
            f"{name}: row {bad[0]} is {what} ({len(bad)} such of {len(features)} rows), so it has no cosine distance; "
            "the model has diverged or its weights were not loaded"
        )
    result: Float32Array = (features / lengths[:, None]).astype(np.float32)
    return result


def cosine_distances(query: Float32Array, gallery: Float32Array, out: Float32Array | None = None) -> Float32Array:
    """`1 - query @ gallery.T` of normalised features, computed in tiles of one fixed shape.

    Args:
        query: (Q, D) rows of length one.
        gallery: (N, D) rows of length one.
        out: (Q, N) float32 to write into.

    Returns:
        (Q, N) float32 in 0..2, up to rounding (a distance to itself may be a little below 0).
    """
    if out is None:
        out = np.empty((len(query), len(gallery)), np.float32)
    for left in range(0, len(gallery), TILE_COLUMNS):
        columns = padded(gallery[left : left + TILE_COLUMNS], TILE_COLUMNS)
        for top in range(0, len(query), TILE_ROWS):
            rows = padded(query[top : top + TILE_ROWS], TILE_ROWS)
            tile_distances(rows, columns, out[top : top + TILE_ROWS, left : left + TILE_COLUMNS])
    return out


def tile_distances(rows: Tensor, columns: Tensor, out: Float32Array) -> None:
    """Cosine distances of one tile.

    Args:
        rows: (TILE_ROWS, D) of length one, padded.
        columns: (TILE_COLUMNS, D) of length one, padded.
        out: (R, C) to write those into that are not padding.
    """
    products = row_products(rows, columns).numpy()
    np.subtract(1, products[: out.shape[0], : out.shape[1]], out=out)


def padded(features: Float32Array, num_rows: int) -> Tensor:
    """(num_rows, D) features with zeros below, of a tile's height or width; a view where there is nothing to add."""
    if len(features) == num_rows and features.flags.writeable:
        return torch.from_numpy(np.ascontiguousarray(features))
    rows = np.zeros((num_rows, features.shape[1]), np.float32)
    rows[: len(features)] = features
    return torch.from_numpy(rows)


def block_shape(num_queries: int, gallery_size: int, memory_budget_bytes: int) -> tuple[int, int]:
    """Rows and columns of the blocks of distances that fit the budget.

    Whole rows of the gallery where half a tile of queries fits, or half of all, more of them in whole tiles; else the
    gallery is cut as well, at twice the matrix products.

    >>> block_shape(10_000, 128_517, 256 * 2**20), block_shape(10_000, 128_517, 128 * 2**20)
    ((256, 128517), (212, 128517))

    Raises:
        ValueError: If not even one tile fits.
    """
    available = memory_budget_bytes - WORKING_BYTES
    if memory_budget_bytes < LEAST_BUDGET_BYTES:
        raise ValueError(
            f"expected a memory budget of at least {-(-LEAST_BUDGET_BYTES // 2**20)} MB for ranking, "
            f"got {memory_budget_bytes / 2**20:.1f} MB; raise evaluation.memory_budget_mb"
        )
    rows, height = available // (4 * gallery_size), min(TILE_ROWS, num_queries)
    if rows >= num_queries:
        return num_queries, gallery_size
    if rows >= TILE_ROWS:
        return rows - rows % TILE_ROWS, gallery_size
    if rows >= height / 2:
        return rows, gallery_size
    return height, available // (4 * height) // TILE_COLUMNS * TILE_COLUMNS


def rank_blocks(
    query: Embeddings,
    gallery: Embeddings,
    *,
    remove_junk: bool,
    memory_budget_bytes: int = 2**30,
    progress: Progress | None = None,
) -> PositiveRanks:
    """Exact ranks of all positives of all queries, from features, within a memory budget.

    The bits of a distance depend on the two features alone, so neither the budget nor the split of the queries over
    workers changes a rank; `PositiveRanks.join` puts the workers' parts together.

    Args:
        query: Features of the queries.
        gallery: Features of the gallery.
        remove_junk: Take out entries with the query's identity and camera.
        memory_budget_bytes: For a block of distances and its ranking, beside the features.
        progress: Called with the queries ranked and all of them, after each block.

    Raises:
        ValueError: If features do not fit each other or cannot be compared, or the budget is too small.
    """
    return _rank(
        _cosine_blocks(query, gallery), query.vehicle_ids, query.camera_ids, _identities(gallery), (), remove_junk,
        memory_budget_bytes, progress,
    )[0]  # fmt: skip


def rank_before_and_after(
    query: Embeddings,
    gallery: Embeddings,
    change: DistanceChange,
    known: Float32Array | None = None,
    *,
    remove_junk: bool,
    memory_budget_bytes: int = 2**30,
    progress: Progress | None = None,
) -> tuple[PositiveRanks, PositiveRanks]:
    """Exact ranks by the distances as they are and by the changed ones, which are computed once; see `rank_blocks`.

    Args:
        query: Features of the queries.
        gallery: Features of the gallery.
        change: Of a block of distances.
        known: (Q, G) cosine distances where somebody has computed them already, from features that were checked.
        remove_junk: Take out entries with the query's identity and camera.
        memory_budget_bytes: For a block of distances and its ranking, beside the features and the known distances.
        progress: Called with the queries ranked and all of them, after each block.

    Raises:
        ValueError: If features do not fit each other or cannot be compared, or the budget is too small.
    """
    blocks = _cosine_blocks(query, gallery) if known is None else _blocks_of(known)
    before, after = _rank(
        blocks, query.vehicle_ids, query.camera_ids, _identities(gallery), (change,),
        remove_junk, memory_budget_bytes, progress,
    )  # fmt: skip
    return before, after


def rank_by_distances(
    distances: BlockDistances,
    query_ids: NDArray[np.int64],
    query_cameras: NDArray[np.int64],
    identities: GalleryIdentities,
    *,
    remove_junk: bool,
    memory_budget_bytes: int = 2**30,
    progress: Progress | None = None,
) -> PositiveRanks:
    """Exact ranks of all positives of all queries, from any distances that can be had in blocks.

    Args:
        distances: Gives a block; its bits must not depend on how rows and columns are cut.
        query_ids: (Q,) identity codes.
        query_cameras: (Q,) camera codes; negative: unknown.
        identities: Of the gallery.
        remove_junk: Take out entries with the query's identity and camera.
        memory_budget_bytes: For a block of distances and its ranking.
        progress: Called with the queries ranked and all of them, after each block.

    Raises:
        ValueError: If a distance is NaN, or the budget is too small.
    """
    return _rank(distances, query_ids, query_cameras, identities, (), remove_junk, memory_budget_bytes, progress)[0]


def _rank(
    distances: BlockDistances,
    query_ids: NDArray[np.int64],
    query_cameras: NDArray[np.int64],
    identities: GalleryIdentities,
    changes: Sequence[DistanceChange],
    remove_junk: bool,
    memory_budget_bytes: int,
    progress: Progress | None,
) -> list[PositiveRanks]:
    """Ranks by the distances as they are, and after each change."""
    num_rows, num_columns = block_shape(len(query_ids), len(identities), memory_budget_bytes)
    counter = Counter(num_columns)
    memory = np.empty(num_rows * num_columns, np.float32)
    parts: list[list[PositiveRanks]] = [[] for _ in range(1 + len(changes))]
    for top in range(0, len(query_ids), num_rows):
        rows = slice(top, min(top + num_rows, len(query_ids)))
        matches = identities.matches(query_ids[rows], query_cameras[rows], remove_junk=remove_junk)
        match_distances = [np.empty(len(matches.indices), np.float32) for _ in parts]
        ranks: list[RankSum] = []

        def states(rows: slice = rows) -> Iterator[tuple[int, int, Float32Array]]:
            for left, block in _column_blocks(distances, rows, len(identities), num_columns, memory):
                yield 0, left, block
                for number, change in enumerate(changes, start=1):
                    change(block, rows.start, left)
                    yield number, left, block

        for number, left, block in states():
            inside, found = matches.read_distances(block, left)
            match_distances[number][inside] = found
            if num_columns >= len(identities):
                ranks.append(RankSum(matches, match_distances[number], len(identities)))
                ranks[number].add(block, counter)
        if num_columns < len(identities):
            ranks = [RankSum(matches, own, len(identities)) for own in match_distances]
            for number, left, block in states():
                ranks[number].add(block, counter, left)
        for part, rank in zip(parts, ranks, strict=True):
            part.append(rank.result())
        if progress is not None:
            progress(rows.stop, len(query_ids))
    return [PositiveRanks.join(part) for part in parts]


def _cosine_blocks(query: Embeddings, gallery: Embeddings) -> BlockDistances:
    """Cosine distances of features that fit each other and have length one."""
    check_comparable(query, gallery)
    return lambda rows, columns, out: cosine_distances(query.features[rows], gallery.features[columns], out=out)


def check_comparable(query: Embeddings, gallery: Embeddings) -> None:
    """ValueError for features that do not fit each other or are not of length one."""
    if query.features.shape[1:] != gallery.features.shape[1:]:
        raise ValueError(
            f"expected features of one size, got {query.features.shape[1:]} for the queries and "
            f"{gallery.features.shape[1:]} for the gallery"
        )
    _check_lengths(query.features, "query features")
    _check_lengths(gallery.features, "gallery features")


def _blocks_of(distances: Float32Array) -> BlockDistances:
    def block(rows: slice, columns: slice, out: Float32Array) -> Float32Array:
        np.copyto(out, distances[rows, columns])
        return out

    return block


def _identities(gallery: Embeddings) -> GalleryIdentities:
    return GalleryIdentities(gallery.vehicle_ids, gallery.camera_ids)


def _column_blocks(
    distances: BlockDistances, rows: slice, gallery_size: int, num_columns: int, memory: Float32Array
) -> Iterator[tuple[int, Float32Array]]:
    """First gallery index and distances of each block of columns, one after the other in the same memory."""
    num_rows = rows.stop - rows.start
    for left in range(0, gallery_size, num_columns):
        columns = slice(left, min(left + num_columns, gallery_size))
        block = memory[: num_rows * (columns.stop - left)].reshape(num_rows, columns.stop - left)
        yield left, distances(rows, columns, block)


def _check_lengths(features: Float32Array, name: str) -> None:
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))
    bad = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))
    if len(bad):
        raise ValueError(
            f"expected {name} of length 1, got {lengths[bad[0]]:.6g} in row {bad[0]} ({len(bad)} such of "
            f"{len(features)} rows); a zero-norm or non-finite feature means a diverged model, else use normalised()"
        )


def evaluate_blocks(
    query: Embeddings,
    gallery: Embeddings,
    *,
    remove_junk: bool,
    memory_budget_bytes: int = 2**30,
    trapezoid: bool = False,
    progress: Progress | None = None,
) -> RetrievalMetrics:
    """mAP, CMC and mINP from features, within a memory budget; see `rank_blocks`."""
    ranks = rank_blocks(
        query, gallery, remove_junk=remove_junk, memory_budget_bytes=memory_budget_bytes, progress=progress
    )
    return summarise(ranks, trapezoid=trapezoid)
