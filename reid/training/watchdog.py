"""A watchdog for hanging steps: it writes down the stacks of all threads and ends the process, to be restarted."""

from __future__ import annotations

import faulthandler
import sys
import time
from collections import deque
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import IO, Self


class StepWatchdog:
    """Ends the process when no step finishes for `max(minimum_seconds, factor x median step time)`.

    The clock runs in a thread of the interpreter's own that needs no lock, so a hang inside a collective operation or a
    kernel is seen too. Pause it while the loop is not stepping (saving, evaluating, waiting for a consumer).
    """

    def __init__(
        self,
        folder: Path | None,
        name: str,
        *,
        minimum_seconds: float = 300.0,
        factor: float = 20.0,
        enabled: bool = True,
    ) -> None:
        """Nothing runs yet.

        Args:
            folder: Where `stacks-<name>.txt` goes; None: standard error.
            name: Tells workers apart, such as `rank-0`.
            minimum_seconds: Shortest silence that counts as a hang.
            factor: Longest tolerated step in medians of the last hundred.
            enabled: False makes all of it do nothing.
        """
        self._folder, self._name = folder, name
        self._minimum_seconds, self._factor, self._enabled = minimum_seconds, factor, enabled
        self._durations: deque[float] = deque(maxlen=100)
        self._last: float | None = None
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if self._enabled and self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._folder / f"stacks-{self._name}.txt", "w")  # closed in __exit__
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.pause()
        if self._file is not None:
            empty = self._file.tell() == 0
            self._file.close()
            if empty and self._folder is not None:
                (self._folder / f"stacks-{self._name}.txt").unlink(missing_ok=True)
            self._file = None

    @property
    def limit_seconds(self) -> float:
        """The silence that would count as a hang now."""
        usual = median(self._durations) if self._durations else 0.0
        return max(self._minimum_seconds, self._factor * usual)

    def beat(self) -> None:
        """A step has begun or finished: the clock starts again."""
        if not self._enabled:
            return
        now = time.monotonic()
        if self._last is not None:
            self._durations.append(now - self._last)
        self._last = now
        file = self._file if self._file is not None else sys.__stderr__
        if file is not None:
            faulthandler.dump_traceback_later(self.limit_seconds, exit=True, file=file)

    def pause(self) -> None:
        """Stop the clock until the next beat."""
        if self._enabled:
            faulthandler.cancel_dump_traceback_later()
            self._last = None
