"""Counting by bins: quantise a row of distances, look up each bin's class, histogram the classes.

A row asks for the entries before some distances. Bins next to one of these are *undecided*; they form runs, and the gaps
between runs hold entries whose order is known from the bin alone. The histogram counts the gaps; whoever calls compares
the few undecided entries exactly. The table has one class per run (odd) and gap (even): up to 255, one byte.
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
"""Distances per row: with bin 0, 127 runs and as many gaps, the classes of one byte."""
_TOP_BINS: Final = 64
"""Bins left free above the largest distance."""
_MAX_BIN_NUMBER: Final = 2.0**18
"""Numbers before the shift; float32 arithmetic is then good to a small part of a bin, so that vector and scalar code, with
or without fused multiply-add, agree to one bin."""
_CLASSES: Final = np.arange(1, 2 * (MAX_TARGETS + 1) + 1, dtype=np.uint8)


class BinTable:
    """Working memory and the prepared tables of a few rows.

    `prepare` for some rows, then `classify` each of them, then `counts_below`.
    """

    def __init__(self, width: int) -> None:
        # Few bins keep the table in the first-level cache and cheap to fill; many leave few entries undecided.
        self._num_bins = 1 << 12 if width <= 1 << 15 else 1 << 14
        self._quantised = np.empty((1, width), np.uint16)
        self._classes = np.empty((1, width), np.uint8)
        self._table = np.empty((1, 1 << 16), np.uint8)
        self._ready = np.zeros(0, np.bool_)

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
            low = low - (highest - low) / 64
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

        Bins within one of an asked-for distance's are undecided. So is bin 0, which takes what lies below the scale and,
        on some machines, whatever overflows above it.
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
        widths = np.empty(2 * len(run_starts), np.int64)
        widths[0::2] = run_ends - run_starts
        widths[1::2] = next_starts - run_ends
        self._widths = widths
        self._gap_counts = np.zeros(len(run_starts), np.int64)

    def classify(self, row: int, distances: Float32Array, undecided: BoolArray) -> None:
        """Count the gaps of one prepared row and mark its undecided entries in `undecided`."""
        begin, end = int(self._run_begins[row]), int(self._run_begins[row + 1])
        num_classes = 2 * (end - begin)
        table = self._table
        table[0, : self._num_bins] = np.repeat(_CLASSES[:num_classes], self._widths[2 * begin : 2 * end])
        table[0, self._num_bins :] = num_classes
        line = distances.reshape(1, -1)
        quantised, classes = self._quantised[:, : line.shape[1]], self._classes[:, : line.shape[1]]
        cv2.addWeighted(line, self._scales[row], line, 0.0, self._shifts[row], dst=quantised, dtype=cv2.CV_16U)
        look_up(table, quantised, classes)
        histogram = cv2.calcHist([classes], [0], None, [256], [0, 256]).ravel()
        self._gap_counts[begin:end] = histogram[2 : num_classes + 1 : 2]
        np.bitwise_and(classes[0], 1, out=undecided.view(np.uint8))

    def counts_below(self, row_of: Int64Array) -> Int64Array:
        """For each distance asked for: entries in the gaps below its bin; 0 in rows without a table."""
        if not self._ready.any():
            return np.zeros(len(row_of), np.int64)
        before_run = np.cumsum(self._gap_counts) - self._gap_counts
        counts = before_run[self._run_of_target] - before_run[self._run_begins[:-1]][row_of]
        return np.where(self._ready[row_of], counts, 0)


def look_up(table: NDArray[np.uint8], bins: NDArray[np.uint16], out: NDArray[np.uint8]) -> None:
    """`out = table[bins]`; OpenCV has 16-bit tables from version 5 on and is twice as fast as NumPy there."""
    if int(cv2.__version__.split(".")[0]) >= 5:
        cv2.LUT(bins, table, dst=out)
    else:
        np.take(table, bins, out=out, mode="wrap")
