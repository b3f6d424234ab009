"""Progress of the jobs: a bar on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES: Final = 30.0
"""Off a terminal, such as in the log of a Ray job."""


@contextmanager
def progress_bar(title: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error for the time of a `with` block, gone afterwards; off a terminal lines in the log.

    Args:
        title: What is being done.
        clock: Seconds.

    Yields:
        What to call with the number of things done and of all things.
    """
    if not sys.stderr.isatty():
        yield _lines(title, clock)
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(title: str, clock: Callable[[], float]) -> Callable[[int, int], None]:
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
