"""Counting by bins: quantise a row of distances, look up each bin's class, histogram the classes.

A row asks for the entries before some distances. Bins next to one of these are *undecided*; they form runs, and the
gaps between runs hold entries whose order is known from the bin alone. The histogram counts the gaps; whoever calls
compares the few undecided entries exactly.

A histogram is three times slower when neighbouring entries fall into the same class (each increment waits for the one
before), so the bins of a gap take turns among as many classes as one byte allows.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

MAX_TARGETS: Final = 126
"""Distances per row: with bin 0, 127 runs and as many gaps, of at least two classes each."""
_UNDECIDED: Final = 255
"""Class of all undecided bins."""
_TOP_BINS: Final = 64
"""Bins left free above the largest distance."""
_MAX_BIN_NUMBER: Final = 2.0**18
"""Bin numbers before the shift. Float32 arithmetic is then good to a small part of a bin, so that vector and scalar
code, with or without fused multiply-add, agree to one bin."""


class BinTable:
    """Working memory and the prepared tables of a few rows.

    `prepare` for some rows; for each of them `use` and then `classify` piece by piece; then `counts_below`.
    """

    def __init__(self, width: int) -> None:
        # Few bins keep the table in the first-level cache and cheap to fill; many leave few entries undecided.
        self._num_bins = 1 << 13 if width <= 1 << 15 else 1 << 14
        self._quantised = np.empty((1, width), np.uint16)
        self._classes = np.empty((1, width), np.uint8)
        self._table = np.empty((1, 1 << 16), np.uint8)
        self._table_parts = np.split(self._table[0], [self._num_bins])
        every_turn = np.arange(1 << 16).astype(np.uint8)
        self._turns = {turns: every_turn & np.uint8(turns - 1) for turns in (1 << np.arange(8)).tolist()}
        # 16-bit tables came with OpenCV 5; NumPy takes twice as long.
        self._opencv_looks_up = int(cv2.__version__.split(".")[0]) >= 5
        self._ready = np.zeros(0, np.bool_)
        self._scale, self._shift = 1.0, 0.0

    def prepare(
        self,
        offsets: Int64Array,
        distances: Float32Array,
        row_of: Int64Array,
        lowest: Float32Array,
        wanted: BoolArray,
    ) -> BoolArray:
        """Plan the tables of the wanted rows.

        Args:
            offsets: (R + 1,) range of each row's distances.
            distances: (T,) distances asked for, ascending within a row.
            row_of: (T,) row of each.
            lowest: (R,) about the smallest distance of each row; anything below it is merely slower.
            wanted: (R,) which rows.

        Returns:
            (R,) the wanted rows that suit a linear scale; the others must be counted in another way.
        """
        self._ready = wanted & (np.diff(offsets) <= MAX_TARGETS)
        if not self._ready.any():
            return self._ready
        highest = distances[np.clip(offsets[1:] - 1, 0, len(distances) - 1)].astype(np.float64)
        low = lowest.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            low = low - (highest - low) / 8
            scales = (self._num_bins - _TOP_BINS) / (highest - low)
            shifts = -low * scales
            size = np.maximum(np.abs(low), np.abs(highest)) * scales
            self._ready &= np.isfinite(scales) & (scales > 0) & (size <= _MAX_BIN_NUMBER)
        self._scales, self._shifts = scales, shifts
        chosen = self._ready[row_of]
        bins = np.zeros(len(distances), np.int64)
        targets = np.flatnonzero(chosen)
        bins[targets] = np.rint(distances[targets] * scales[row_of[targets]] + shifts[row_of[targets]])
        self._plan_runs(offsets, row_of, bins)
        return self._ready

    def _plan_runs(self, offsets: Int64Array, row_of: Int64Array, bins: Int64Array) -> None:
        """Runs of undecided bins of all rows, one after the other.

        Bins within one of an asked-for distance's are undecided. So is bin 0, which takes what lies below the scale
        and, on some machines, whatever overflows above it.
        """
        num_rows = len(offsets) - 1
        starts = np.zeros(len(bins) + num_rows, np.int64)
        ends = np.ones(len(starts), np.int64)
        places = np.arange(len(bins)) + 1 + row_of
        starts[places] = np.maximum(bins - 1, 0)
        ends[places] = bins + 2
        is_first = np.ones(len(starts), np.bool_)
        is_first[1:] = starts[1:] > ends[:-1]
        row_begins = offsets[:-1] + np.arange(num_rows)
        is_first[row_begins] = True
        run_of_entry = np.cumsum(is_first) - 1
        self._run_of_target = run_of_entry[places]
        self._run_begins = np.append(run_of_entry[row_begins], run_of_entry[-1] + 1)
        run_starts = starts[is_first]
        run_ends = ends[np.append(is_first[1:], True)]
        next_starts = np.append(run_starts[1:], self._num_bins)
        next_starts[self._run_begins[1:] - 1] = self._num_bins
        # Parts: a run, the gap after it, the next run ... An undecided part is 255 whatever the turn, as OR leaves it;
        # the classes of a gap begin at a multiple of the number of turns, a power of two.
        num_gaps = np.diff(self._run_begins)
        self._num_turns = 1 << (np.frexp(_UNDECIDED // num_gaps)[1] - 1)
        gap_in_row = np.arange(len(run_starts)) - np.repeat(self._run_begins[:-1], num_gaps)
        first_classes = gap_in_row * np.repeat(self._num_turns, num_gaps)
        self._part_widths = np.stack((run_ends - run_starts, next_starts - run_ends), axis=1).reshape(-1)
        self._part_classes = np.full(2 * len(run_starts), _UNDECIDED, np.uint8)
        self._part_classes[1::2] = first_classes
        self._histograms = np.zeros((num_rows, 256), np.float32)
        self._gap_places = first_classes + 256 * np.repeat(np.arange(num_rows), num_gaps)

    def use(self, row: int) -> None:
        """Fill the table of one prepared row, for the calls of `classify` that follow."""
        parts = slice(2 * int(self._run_begins[row]), 2 * int(self._run_begins[row + 1]))
        turns = self._turns[int(self._num_turns[row])]
        part_classes = self._part_classes[parts]
        low, high = self._table_parts
        np.bitwise_or(np.repeat(part_classes, self._part_widths[parts]), turns[: len(low)], out=low)
        np.bitwise_or(turns[len(low) :], part_classes[-1], out=high)
        self._scale, self._shift = float(self._scales[row]), float(self._shifts[row])
        self._histogram = self._histograms[row]

    def classify(self, distances: Float32Array, undecided: BoolArray) -> None:
        """Count the gaps among some entries of the row in use, and mark the undecided ones in `undecided`."""
        line = distances.reshape(1, -1)
        quantised, classes = self._quantised[:, : line.shape[1]], self._classes[:, : line.shape[1]]
        cv2.addWeighted(line, self._scale, line, 0.0, self._shift, dst=quantised, dtype=cv2.CV_16U)
        if self._opencv_looks_up:
            cv2.LUT(quantised, self._table, dst=classes)
        else:
            np.take(self._table, quantised, out=classes, mode="wrap")
        self._histogram += cv2.calcHist([classes], [0], None, [256], [0, 256]).reshape(256)
        np.equal(classes[0], _UNDECIDED, out=undecided)

    def counts_below(self, row_of: Int64Array) -> Int64Array:
        """For each distance asked for: entries in the gaps below its bin; 0 in rows without a table."""
        if not self._ready.any():
            return np.zeros(len(row_of), np.int64)
        self._histograms[:, _UNDECIDED] = 0
        gap_counts = np.add.reduceat(self._histograms.reshape(-1).astype(np.int64), self._gap_places)
        before_run = np.cumsum(gap_counts) - gap_counts
        counts = before_run[self._run_of_target] - before_run[self._run_begins[:-1]][row_of]
        return np.where(self._ready[row_of], counts, 0)
