"""Running means of a training loop: summed on the device, read once per row of the log."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from reid.training.stragglers import slowness
from reid.training.workers import mean_over_workers, rows_of_workers


class Totals:
    """Sums and counts by name on the host; totals of rows add up to totals of an epoch."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self.seconds = 0.0
        self.waiting_seconds: list[float] = []
        """Of each worker."""
        self.forward_seconds: list[float] = []
        """Of each worker."""
        self.images = 0.0
        self.steps = 0

    def add(self, other: Totals) -> None:
        """Take another one's totals in."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0.0) + other.counts[name]
        self.seconds += other.seconds
        self.waiting_seconds = _sums(self.waiting_seconds, other.waiting_seconds)
        self.forward_seconds = _sums(self.forward_seconds, other.forward_seconds)
        self.images += other.images
        self.steps += other.steps

    def metrics(self) -> dict[str, float]:
        """Means by name, and the speed of the loop.

        Added are `images_per_second` (all workers), `data_waiting` (share of the time, 0..1), `step_seconds` and, with
        several workers, `slowest_worker`: how many times longer than the median the slowest one waited for data and
        computed forward passes. A name without a single finite value is left out.
        """
        means = {name: value / self.counts[name] for name, value in self.sums.items() if self.counts[name] > 0}
        seconds = max(self.seconds, 1e-9)
        means["images_per_second"] = self.images / seconds
        workers = len(self.waiting_seconds)
        means["data_waiting"] = sum(self.waiting_seconds) / max(1, workers) / seconds
        means["step_seconds"] = self.seconds / max(1, self.steps)
        if workers > 1:
            means["slowest_worker"] = slowness(_sums(self.waiting_seconds, self.forward_seconds))
        return means


def _sums(left: list[float], right: list[float]) -> list[float]:
    """Entry by entry; an empty list counts as zeros."""
    return [a + b for a, b in zip(left, right, strict=True)] if left and right else left or right


class Meter:
    """Collects the metrics of steps without waiting for the device; non-finite values are left out of the means."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._images = 0
        self._steps = 0
        self._waiting_seconds = 0.0
        self._started = time.perf_counter()

    def add(self, metrics: Mapping[str, Tensor], *, images: int, waiting_seconds: float) -> None:
        """Add one step's scalars."""
        names = tuple(metrics)
        values = torch.stack([value.detach().float() for value in metrics.values()])
        finite = torch.isfinite(values)
        pair = torch.stack([torch.where(finite, values, 0.0), finite.float()])  # (2, names)
        self._sums[names] = self._sums[names] + pair if names in self._sums else pair
        self._images += images
        self._steps += 1
        self._waiting_seconds += waiting_seconds

    @property
    def steps(self) -> int:
        """Steps since the last drain."""
        return self._steps

    def restart_clock(self) -> None:
        """Time until now belongs to somebody else (saving, a consumer)."""
        self._started = time.perf_counter()

    def drain(self, forward_seconds: float) -> Totals:
        """The totals over all workers since the last drain, and start anew. A collective operation that waits.

        Args:
            forward_seconds: What this worker's forward passes took since then.
        """
        totals = Totals()
        for names, pair in self._sums.items():
            sums, counts = mean_over_workers(pair).tolist()
            for name, value, count in zip(names, sums, counts, strict=True):
                totals.sums[name] = totals.sums.get(name, 0.0) + value
                totals.counts[name] = totals.counts.get(name, 0.0) + count
        seconds = time.perf_counter() - self._started
        own = [seconds, float(self._images), self._waiting_seconds, forward_seconds]
        columns = rows_of_workers(torch.tensor(own, dtype=torch.float64)).T
        totals.seconds, totals.images = float(columns[0].mean()), float(columns[1].sum())
        totals.waiting_seconds, totals.forward_seconds = columns[2].tolist(), columns[3].tolist()
        totals.steps = self._steps
        self._sums, self._images, self._steps, self._waiting_seconds = {}, 0, 0, 0.0
        self._started = time.perf_counter()
        return totals
