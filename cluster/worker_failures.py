"""What failed workers said: in the log as soon as Ray starts their group anew, and in the error that ends a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from ray.train.v2.api.callback import UserCallback

from cluster.error_words import words_of
from cluster.run_marks import EndMark
from reid.build.metrics_log import MetricsLog
from reid.storage import open_location

logger = logging.getLogger(__name__)

_HEAD, _TAIL = 600, 1400
"""Characters kept of a long text: Ray says first what happened, tracebacks and advice come last."""
_ANEW: Final = "the workers start anew at the newest checkpoint"


def words_of_ranks(failures: Mapping[int, BaseException]) -> str:
    """What each failed worker raised, each text once with the ranks that said it.

    >>> words_of_ranks({0: OSError("disk full"), 2: OSError("disk full"), 1: KeyError("x")})
    "rank 0, 2: disk full; rank 1: 'x'"
    """
    said: dict[str, list[int]] = {}
    for rank, failure in failures.items():
        cause = getattr(failure, "cause", None) or failure
        said.setdefault(_shortened(words_of(cause).strip() or type(cause).__name__), []).append(rank)
    return "; ".join(f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in said.items())


def _shortened(text: str) -> str:
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]} [...] {text[-_TAIL:]}"


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
        """Adds a row. Raises nothing: Ray would end the run for it."""
        try:
            self._say(worker_exceptions)
        except Exception:
            logger.exception("a failure of workers could not be told")

    def _say(self, failures: dict[int, Exception]) -> None:
        if any(getattr(failure, "preempted", False) for failure in failures.values()):
            what_next = f"its node was taken away: {_ANEW}"  # Ray does not count it among the failures
        else:
            self._num_failures += 1
            what_next = f"failure {self._num_failures}, cluster.max_failures is {self._max_failures}: "
            what_next += _ANEW if self._num_failures <= self._max_failures else "the run ends"
        folder = open_location(self._folder)
        if EndMark(folder).error() is None:
            row = {
                "step": 0,
                "text": f"{words_of_ranks(failures)}\n{what_next}",
                "level": "WARNING",
                "time": time.time(),
            }
            MetricsLog(folder).append("message", row)
