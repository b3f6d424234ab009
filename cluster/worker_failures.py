"""What failed workers said: in the log as soon as Ray starts their group anew, and in the error that ends a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ray.train.v2.api.callback import UserCallback

from cluster.run_marks import EndMark
from reid.build.metrics_log import MetricsLog
from reid.storage import open_location

_LONGEST = 2000
"""Characters of a worker's text: the end, where tracebacks say what happened."""


def words_of_ranks(failures: Mapping[int, BaseException]) -> str:
    """What each failed worker raised, each text once with the ranks that said it.

    >>> words_of_ranks({0: OSError("disk full"), 2: OSError("disk full"), 1: KeyError("x")})
    "rank 0, 2: disk full; rank 1: 'x'"
    """
    said: dict[str, list[int]] = {}
    for rank, failure in failures.items():
        cause = getattr(failure, "cause", None) or failure
        said.setdefault((str(cause).strip() or type(cause).__name__)[-_LONGEST:], []).append(rank)
    return "; ".join(f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in said.items())


class FailureMessages(UserCallback):  # type: ignore[misc]  # Ray has no types
    """Puts a message into the run's metrics when workers fail, from where the driver prints it.

    Ray calls it in its controller, whose own log nobody sees. What ends the run at once is left to the driver.
    """

    def __init__(self, folder: str, max_failures: int) -> None:
        """Nothing is written yet.

        Args:
            folder: Address of the run's folder.
            max_failures: Of the configuration.
        """
        self._folder = folder
        self._max_failures = max_failures
        self._num_failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Adds a row."""
        folder = open_location(self._folder)
        self._num_failures += 1
        if EndMark(folder).error() is not None:
            return
        what_next = (
            "the workers start anew at the newest checkpoint"
            if self._num_failures <= self._max_failures
            else "the run ends"
        )
        text = (
            f"{words_of_ranks(worker_exceptions)}\nfailure {self._num_failures}, cluster.max_failures is"
            f" {self._max_failures}: {what_next}"
        )
        MetricsLog(folder).append("message", {"step": 0, "text": text, "level": "WARNING", "time": time.time()})
