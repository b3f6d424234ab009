"""Notices a worker that needs much longer than the others, which wait for it at every step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median_low
from typing import Final

import torch

logger = logging.getLogger(__name__)

SLOW_FACTOR: Final = 2.0
"""Times the median of all workers from which on one is a straggler."""
SLOW_STEPS: Final = 50
"""Steps in a row that it must be one before it is named."""


class ForwardClock:
    """Seconds of forward passes: what a worker computes before it first waits for the others.

    On CUDA measured on the device, without waiting for it until the sum is asked for. With synchronised batch norm the
    workers wait for each other inside the forward pass, and the clock cannot tell them apart.
    """

    def __init__(self, device: torch.device) -> None:
        self._uses_events = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measures a `with` block."""
        if self._uses_events:
            began, ended = _event(), _event()
            began.record()
            yield
            ended.record()
            self._events.append((began, ended))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    def take_seconds(self) -> float:
        """The sum since the last call; waits for the device."""
        seconds, events = self._seconds, self._events
        self._seconds, self._events = 0.0, []
        if events:
            events[-1][1].synchronize()
            seconds += sum(began.elapsed_time(ended) for began, ended in events) / 1e3
        return seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def slowness(seconds: Sequence[float]) -> float:
    """How many times longer than the median the slowest worker needs (of two: than the other).

    >>> slowness([0.2, 0.1, 0.1, 0.5]), slowness([0.1, 0.4]), slowness([0.1])
    (5.0, 4.0, 1.0)
    """
    return max(seconds) / max(median_low(seconds), 1e-9)


class StragglerWatch:
    """Warns once when the same worker has been a straggler for `SLOW_STEPS`, and again only after it had caught up."""

    def __init__(self, nodes: Sequence[str]) -> None:
        """Watches one worker per entry.

        Args:
            nodes: Name of each worker's machine.
        """
        self._nodes = nodes
        self._worker = 0
        self._slow_steps = 0
        self._is_named = False

    def look(self, waiting: Sequence[float], forward: Sequence[float], steps: int) -> None:
        """Take in some steps.

        Args:
            waiting: Seconds for which each worker waited for data.
            forward: Seconds of each worker's forward passes.
            steps: In which these seconds were spent.
        """
        own = [sum(parts) for parts in zip(waiting, forward, strict=True)]
        worker = own.index(max(own))
        if slowness(own) <= SLOW_FACTOR or worker != self._worker:
            self._worker, self._slow_steps, self._is_named = worker, 0, False
        if slowness(own) <= SLOW_FACTOR:
            return
        self._slow_steps += steps
        if self._slow_steps < SLOW_STEPS or self._is_named:
            return
        self._is_named = True
        logger.warning(
            "worker %d on %s holds up the others: its own part of a step takes %.3g s (%.3g s waiting for data, "
            "%.3g s forward), %.1f times the median; look for other load, a hot or throttled device, a slow disk",
            worker, self._nodes[worker], own[worker] / steps, waiting[worker] / steps, forward[worker] / steps,
            slowness(own),
        )  # fmt: skip
