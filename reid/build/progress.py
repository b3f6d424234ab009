"""Progress of the jobs: bars on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from reid.progress import Progress, Stages

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES: Final = 30.0
"""Off a terminal, such as in the log of a Ray job."""


@contextmanager
def progress_bars(clock: Callable[[], float] = time.monotonic) -> Iterator[Stages]:
    """A bar for the newest stage on standard error for the time of a `with` block, gone afterwards.

    Off a terminal there are lines in the log, no two of them within `SECONDS_BETWEEN_LINES`.

    Args:
        clock: Seconds.
    """
    if not sys.stderr.isatty():
        yield _Lines(clock).begin
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def begin(title: str) -> Progress:
            for earlier in bars.task_ids:
                bars.remove_task(earlier)
            task = bars.add_task(title, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield begin


@contextmanager
def progress_bar(title: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """One bar, for work of one stage; see `progress_bars`.

    Args:
        title: What is being done.
        clock: Seconds.
    """
    with progress_bars(clock) as begin:
        yield begin(title)


class _Lines:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: float | None = None

    def begin(self, title: str) -> Progress:
        began = self._clock()
        if self._last is None:
            self._last = began

        def tell(done: int, total: int) -> None:
            now = self._clock()
            if now - (self._last or 0.0) < SECONDS_BETWEEN_LINES or not done:
                return
            self._last = now
            left = (now - began) / done * (total - done)
            logger.info("%s: %s of %s, about %.0f min left", title, f"{done:,}", f"{total:,}", left / 60)

        return tell
