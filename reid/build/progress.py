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
    """A bar for each stage on standard error for the time of a `with` block, gone afterwards; off a terminal lines.

    Args:
        clock: Seconds.
    """
    if not sys.stderr.isatty():
        yield lambda title: _lines(title, clock)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def begin(title: str) -> Progress:
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


def _lines(title: str, clock: Callable[[], float]) -> Progress:
    began = last = clock()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if now - last < SECONDS_BETWEEN_LINES or not done:
            return
        last = now
        left = (now - began) / done * (total - done)
        logger.info("%s: %s of %s, about %.0f min left", title, f"{done:,}", f"{total:,}", left / 60)

    return tell
