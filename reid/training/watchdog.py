"""A watchdog for hanging steps: it writes down the stacks of all threads and ends the process, to be restarted."""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import IO, Final, Self

from reid.storage import Location, upload_file

logger = logging.getLogger(__name__)

FIRST_STEP_PATIENCE: Final = 10
"""How many times longer than any other the first step may take."""


def stacks_folder(run: Location | None) -> Path | None:
    """Where the stacks of a hang go: the run folder; for one on an object store, a folder of this machine.

    A process that hangs cannot upload. What an earlier one left on this machine is brought to the run folder here, at
    the start of the process that replaces it.
    """
    if run is None:
        return None
    if run.is_local:
        return run.local_path
    folder = Path(tempfile.gettempdir()) / f"reid-stacks-{hashlib.sha256(run.uri.encode()).hexdigest()[:16]}"
    for path in folder.glob("stacks-*.txt"):
        try:
            if path.stat().st_size > 0:  # another worker of this machine has its own open, empty
                upload_file(path, run.child(path.name))
                path.unlink()
        except OSError as error:
            logger.warning("the stacks of a hang stay in %s: %s", path, error)
    return folder


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
            folder: Where `stacks-<name>-<time>-<process>.txt` goes; None: standard error.
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
        self._path: Path | None = None

    def __enter__(self) -> Self:
        if self._enabled and self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # A name of its own: the process that replaces a hanging one must not overwrite what it left.
            self._path = self._folder / f"stacks-{self._name}-{time.time_ns()}-{os.getpid()}.txt"
            self._file = open(self._path, "w")  # closed in __exit__
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.pause()
        if self._file is not None:
            empty = self._file.tell() == 0
            self._file.close()
            if empty and self._path is not None:
                self._path.unlink(missing_ok=True)
            self._file = None

    @property
    def limit_seconds(self) -> float:
        """The silence that would count as a hang now."""
        if not self._durations:
            # The first step also pays for loader processes, remote shards and kernels that are chosen or compiled.
            return FIRST_STEP_PATIENCE * self._minimum_seconds
        return max(self._minimum_seconds, self._factor * median(self._durations))

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
