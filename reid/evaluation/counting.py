"""How many entries of rows of distances come before given ones: exact, without sorting the rows.

The rank of a positive is the number of gallery entries before it, so sorting the gallery does far too much. Three ways
to count, all exact, chosen for each row by an estimate from a small sample:

- *near*: pick out the entries up to the largest distance asked for, when these are few, and order only them;
- *direct*: beside that, one comparison over the row for each of a few far distances;
- *table*: quantise the row, look up the class of each bin, histogram the classes; only the entries in bins next to a
  distance asked for are compared exactly (a bad model, or many positives).

Convention: entry `g` is before entry `p` when `(distance[g], g) < (distance[p], p)`: the gallery index breaks ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.evaluation.bin_table import BinTable

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

PIECE: Final = 1 << 20
"""Most columns handled at once: bounds the working memory (under 32 MB) and keeps histogram counts exact in float32."""
ENTRIES_AT_ONCE: Final = 1 << 18
"""Short rows are put together, long rows cut, to about so many entries: small enough for the cache of a core."""
ROWS_PLANNED: Final = 128
"""Rows whose way of counting is chosen together."""
SAMPLE: Final = 256
"""Entries of a row looked at to choose the way to count."""

# Nanoseconds per entry of a row, and per row, on one core with AVX2. The choice depends on them, never the result.
_NEAR, _NEAR_SURVIVOR, _DIRECT, _TABLE = 0.3, 30.0, 0.27, 1.5
_DIRECT_CALL, _TABLE_CALL = 4_000.0, 22_000.0
_NUM_DIRECT: Final = np.array([0, 1, 2, 3, 5, 8])
"""Numbers of far distances that are considered for direct counting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """The entries asked for, by row: where they are in the gallery and how far away."""

    offsets: Int64Array
    """(Q + 1,) row `q` asks for the entries `offsets[q] ... offsets[q + 1] - 1`."""
    distances: Float32Array
    """Ascending within a row."""
    indices: Int64Array
    """Gallery index of each."""

    def of_rows(self, begin: int, end: int, first_index: int) -> Targets:
        """What the rows `begin ... end - 1` ask for, with indices counted from `first_index`."""
        offsets = self.offsets[begin : end + 1]
        chosen = slice(int(offsets[0]), int(offsets[-1]))
        return Targets(
            offsets=offsets - offsets[0],
            distances=self.distances[chosen],
            indices=self.indices[chosen] - first_index,
        )


class Counter:
    """Counts for rows of at most so many columns; holds the working memory, reused from call to call."""

    def __init__(self, num_columns: int) -> None:
        width = max(1, min(num_columns, PIECE))
        self._num_rows = max(1, ENTRIES_AT_ONCE // width)
        self._mask = np.empty(max(self._num_rows * width, ENTRIES_AT_ONCE), np.bool_)
        self._bin_table = BinTable(width)

    def count_before(self, block: Float32Array, targets: Targets, first_index: int = 0) -> Int64Array:
        """Number of entries of each row before each of those it asks for.

        Args:
            block: (Q, N) distances to the gallery entries `first_index ... first_index + N - 1`.
            targets: What each row asks for. A target need not lie within the block, but if it does, the block holds
                exactly its distance there.
            first_index: Gallery index of the first column.

        Returns:
            One int64 per target.

        Raises:
            ValueError: If the block holds a NaN.
        """
        counts = np.zeros(len(targets.distances), np.int64)
        for left in range(0, block.shape[1], PIECE):
            for top in range(0, len(block), ROWS_PLANNED):
                rows = block[top : top + ROWS_PLANNED, left : left + PIECE]
                part = targets.of_rows(top, top + len(rows), first_index + left)
                chosen = slice(int(targets.offsets[top]), int(targets.offsets[top + len(rows)]))
                if chosen.start == chosen.stop:
                    refuse_nan(rows, top)
                else:
                    counts[chosen] += self._count(rows, part, top)
        return counts

    def _count(self, rows: Float32Array, targets: Targets, first_row: int) -> Int64Array:
        """The counts of some rows, planned together; indices are columns, possibly outside."""
        num_rows, width = rows.shape
        row_of = np.repeat(np.arange(num_rows), np.diff(targets.offsets))
        plan = _choose(
            np.ascontiguousarray(rows[:, :: max(1, width // SAMPLE)]), targets, row_of, width, self._bin_table
        )
        counts = np.zeros(len(row_of), np.int64)
        positions: list[Int64Array] = []
        values: list[Float32Array] = []
        begin = 0
        for top in range(0, num_rows, self._num_rows):
            end = min(top + self._num_rows, num_rows)
            for left in range(0, width, ENTRIES_AT_ONCE):
                some = np.ascontiguousarray(rows[top:end, left : left + ENTRIES_AT_ONCE])
                found = self._pick_out(some, plan, top, starts_row=left == 0)
                values.append(some.reshape(-1).take(found))
                positions.append(found + ((top - begin) * width + left))
            if end == num_rows or sum(map(len, values)) > PIECE // 4:
                compared = np.concatenate(values)
                if np.isnan(compared.max(initial=-np.inf)):
                    refuse_nan(rows, first_row)
                chosen = slice(int(targets.offsets[begin]), int(targets.offsets[end]))
                part = targets.of_rows(begin, end, 0)
                counts[chosen] = _count_among(compared, np.concatenate(positions), part, row_of[chosen] - begin, width)
                positions, values, begin = [], [], end
        counts += self._bin_table.counts_below(row_of)
        mask = np.empty(width if plan.direct else 0, np.bool_)
        for row, target in plan.direct:
            counts[target] = _count_one(rows[row], targets.distances[target], int(targets.indices[target]), mask)
        return counts

    def _pick_out(self, rows: Float32Array, plan: _Plan, first_row: int, *, starts_row: bool) -> Int64Array:
        """Positions, row by row, of the entries that must be compared exactly; NaN are always among them."""
        chosen = slice(first_row, first_row + len(rows))
        mask = self._mask[: rows.size].reshape(rows.shape)
        is_table = plan.is_table[chosen]
        if not is_table.all():
            np.greater(rows, plan.thresholds[chosen, None], out=mask)
            np.logical_not(mask, out=mask)
        for row in np.flatnonzero(is_table).tolist():
            if starts_row:
                self._bin_table.use(first_row + row)
            self._bin_table.classify(rows[row], mask[row])
        found: Int64Array = mask.reshape(-1).nonzero()[0]
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """How some rows are counted."""

    is_table: BoolArray
    """(R,) by table."""
    thresholds: Float32Array
    """(R,) in the other rows, entries up to this distance are near."""
    direct: list[tuple[int, int]]
    """(row, target) of the targets that are counted directly."""


def refuse_nan(rows: Float32Array, first_row: int = 0) -> None:
    """Raise when a distance is NaN: it has no place in an order.

    Raises:
        ValueError: Naming the first such row.
    """
    if rows.size:
        bad = np.flatnonzero(np.isnan(rows.max(axis=1)))
        if len(bad):
            raise ValueError(
                f"expected distances without NaN, got {np.count_nonzero(np.isnan(rows[bad[0]]))} NaN in the row of "
                f"query {first_row + bad[0]}; check its feature and the gallery's (a diverged model?)"
            )


def count_true(mask: BoolArray) -> int:
    """Number of True in a contiguous mask (OpenCV counts three times faster than NumPy).

    >>> count_true(np.array([True, False, True]))
    2
    """
    return int(cv2.countNonZero(mask.view(np.uint8).reshape(1, -1))) if mask.size else 0


def _choose(sample: Float32Array, targets: Targets, row_of: Int64Array, width: int, bin_table: BinTable) -> _Plan:
    """Plan rows by estimated cost, from a sample (R, S) of their entries; prepares the tables."""
    numbers = np.diff(targets.offsets)
    rows = np.arange(len(numbers))
    num_near = numbers[:, None] - _NUM_DIRECT
    last = len(targets.distances) - 1
    thresholds = targets.distances[np.clip(targets.offsets[:-1, None] + num_near - 1, 0, last)]
    below = np.packbits(sample[:, None, :] <= thresholds[:, :, None], axis=2)
    shares = np.bitwise_count(below).sum(axis=2) / sample.shape[1]
    shares[num_near <= 0] = 0
    costs = width * (_NEAR + _NEAR_SURVIVOR * shares + _DIRECT * _NUM_DIRECT) + _DIRECT_CALL * _NUM_DIRECT
    costs[num_near < 0] = np.inf
    best = np.argmin(costs, axis=1)
    is_dear = (costs[rows, best] > width * _TABLE + _TABLE_CALL) & (numbers > 0)
    lowest = np.minimum(sample.min(axis=1), targets.distances[np.clip(targets.offsets[:-1], 0, last)])
    is_table = bin_table.prepare(targets.offsets, targets.distances, row_of, lowest, is_dear)
    # A dear row that suits no table is counted as all near: one sort of what lies below its last target.
    best[is_dear] = 0
    near = num_near[rows, best]
    return _Plan(
        is_table=is_table,
        thresholds=np.where(near > 0, thresholds[rows, best], np.float32(-np.inf)),
        direct=[
            (row, target)
            for row in np.flatnonzero(near < numbers).tolist()
            for target in range(int(targets.offsets[row] + near[row]), int(targets.offsets[row + 1]))
        ],
    )


def _count_one(row: Float32Array, distance: np.float32, index: int, mask: BoolArray) -> int:
    count = count_true(np.less(row, distance, out=mask))
    own = 0 <= index < len(row)
    if count_true(np.equal(row, distance, out=mask)) > own:
        count += count_true(mask[: max(0, index)])
    return count


def _count_among(
    values: Float32Array, positions: Int64Array, targets: Targets, row_of: Int64Array, width: int
) -> Int64Array:
    """Counts among some entries of the rows only.

    Args:
        values: Their distances.
        positions: Where they are, row * width + column, ascending.
        targets: What the rows ask for.
        row_of: Row of each target.
        width: Columns.
    """
    num_rows = len(targets.offsets) - 1
    keys: NDArray[Any] = values
    wanted: NDArray[Any] = targets.distances
    if num_rows == 1:
        before = np.zeros(len(row_of), np.int64)
    else:
        keys, wanted = sortable(values, positions // width), sortable(targets.distances, row_of)
        before = np.searchsorted(positions, np.arange(num_rows) * width)[row_of]
    ordered = np.sort(keys)
    first = np.searchsorted(ordered, wanted, "left")
    num_equal = np.searchsorted(ordered, wanted, "right") - first
    counts = first - before
    own = (targets.indices >= 0) & (targets.indices < width)
    tied = np.flatnonzero(num_equal > own)
    if len(tied) == 0:
        return counts
    wanted_positions = row_of[tied] * width + np.clip(targets.indices[tied], 0, width)
    if len(tied) <= 4 * num_rows:
        row_starts = np.searchsorted(positions, np.arange(num_rows + 1) * width)
        for target, position in zip(tied.tolist(), wanted_positions.tolist(), strict=True):
            start, stop = row_starts[row_of[target]], row_starts[row_of[target] + 1]
            equal = np.flatnonzero(values[start:stop] == targets.distances[target])
            counts[target] += np.searchsorted(positions[start:stop][equal], position)
        return counts
    # Many ties: order by (value, position) at once, as one number (group, position).
    order = np.argsort(keys, kind="stable")
    scale = num_rows * width + 1
    numbers = np.searchsorted(ordered, ordered, "left") * scale + positions[order]
    counts[tied] = np.searchsorted(numbers, first[tied] * scale + wanted_positions) - before[tied]
    return counts


def sortable(values: Float32Array, rows: Int64Array) -> Int64Array:
    """Integers in the order of (row, value); no NaN.

    >>> sortable(np.array([2, -1, 0.5, -0.0, 0], np.float32), np.array([0, 1, 1, 1, 1])).argsort(kind="stable").tolist()
    [0, 1, 3, 4, 2]
    """
    bits = (values + np.float32(0)).view(np.int32)  # adding 0 turns -0 into 0
    ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    keys: Int64Array = (rows << 32) + ordered
    return keys
