"""The tasks of an evaluation: slices of its work on evaluation workers, for as long as the evaluation may run.

Each task says when it begins to run, so that waiting until training leaves a CPU or a GPU does not count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from cluster.progress_board import SECONDS_BETWEEN_COUNTS, BoardPlace, ProgressBoard, places_on
from cluster.resources import evaluation_options
from reid.config import ClusterConfig

Slice = Any
"""A task under way: first it yields that it has begun, then its result (`ray.ObjectRefGenerator`)."""


class Allowance:
    """How long an evaluation may still run: time in which none of its tasks has begun, or all are done, is free."""

    def __init__(self, seconds: float) -> None:
        """The whole of it is left."""
        self._seconds = seconds
        self._left = seconds

    def results(self, slices: Sequence[Slice], board: ProgressBoard | None = None) -> list[Any]:
        """The results of tasks, in their order; when one fails or time is over, the others are ended.

        A task whose process or node dies is repeated by Ray; it counts from the beginning of its first try.

        Args:
            slices: Tasks under way.
            board: Where they write how far they are.

        Raises:
            TimeoutError: The allowance is used up.
            RayError: A task failed.
        """
        places = {one: place for place, one in enumerate(slices)}
        begun: set[Slice] = set()
        results: list[Any] = [None] * len(slices)
        try:
            while places:
                one = self._next(list(places), board, counts=bool(begun))
                said = ray.get(next(one))
                if one in begun:
                    results[places.pop(one)] = said
                    begun.remove(one)
                else:
                    begun.add(one)
        finally:
            for one in places:
                ray.cancel(one, force=True)
        return results

    def _timeout(self) -> float | None:
        return None if math.isinf(self._left) else max(0.0, self._left)

    def _next(self, slices: list[Slice], board: ProgressBoard | None, *, counts: bool) -> Slice:
        """A task that has something to say; `counts`: the wait for it is taken off the allowance."""
        ready: list[Slice] = []
        while not ready:
            since = time.monotonic()
            longest = self._timeout() if counts else None
            timeout = longest
            if board is not None:
                timeout = SECONDS_BETWEEN_COUNTS if longest is None else min(longest, SECONDS_BETWEEN_COUNTS)
            ready, _ = ray.wait(slices, num_returns=1, timeout=timeout)
            if board is not None:
                board.show()
            if counts:
                self._left -= time.monotonic() - since
            if timeout == longest:
                break
        if not ready:
            raise TimeoutError(
                f"not done after running for {self._seconds:g} s (cluster.evaluation_timeout_seconds): a slower"
                " evaluation needs more, a hung worker is to be looked for"
            )
        return ready[0]


def run_slices(
    cluster: ClusterConfig,
    function: Callable[..., Any],
    arguments: Sequence[Sequence[Any]],
    allowance: Allowance,
    board: ProgressBoard | None = None,
) -> list[Any]:
    """The results of `function(*arguments)` for each of several arguments, all on evaluation workers.

    Args:
        cluster: What an evaluation worker has.
        function: The work; where there is a board it also takes `stages`.
        arguments: Of each slice.
        allowance: How long this may take.
        board: Where the slices write how far they are.

    Raises:
        TimeoutError: The allowance is used up.
        RayError: A task failed.
    """
    places = places_on(board, len(arguments))
    slices = [start_slice(cluster, function, *own, place=place) for own, place in zip(arguments, places, strict=True)]
    return allowance.results(slices, board)


def start_slice(
    cluster: ClusterConfig, function: Callable[..., Any], *arguments: Any, place: BoardPlace | None = None
) -> Slice:
    """Begins `function(*arguments)` on an evaluation worker; of object references the task gets the objects.

    Args:
        cluster: What an evaluation worker has.
        function: The work; where there is a place it also takes `stages`.
        arguments: Of the work.
        place: Where it writes how far it is.
    """
    return _announced.options(**evaluation_options(cluster)).remote(function, place, *arguments)


@ray.remote(num_returns="streaming")
def _announced(function: Callable[..., Any], place: BoardPlace | None, *arguments: Any) -> Iterator[Any]:
    # Always the same two: of a task that is repeated, Ray hands on from where the first try came to.
    yield None
    yield function(*arguments) if place is None else function(*arguments, stages=place.begin)
