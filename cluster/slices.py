"""The tasks of an evaluation: slices of its work on evaluation workers, for as long as the evaluation may run.

Each task says when it begins to run, so that waiting until training leaves a CPU or a GPU does not count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

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

    def results(self, slices: Sequence[Slice]) -> list[Any]:
        """The results of tasks, in their order; when one fails or time is over, the others are ended.

        A task whose process or node dies is repeated by Ray; it counts from the beginning of its first try.

        Raises:
            TimeoutError: The allowance is used up.
            RayError: A task failed.
        """
        places = {one: place for place, one in enumerate(slices)}
        begun: set[Slice] = set()
        results: list[Any] = [None] * len(slices)
        try:
            while places:
                one = self._next(list(places), counts=bool(begun))
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

    def _next(self, slices: list[Slice], *, counts: bool) -> Slice:
        """A task that has something to say; `counts`: the wait for it is taken off the allowance."""
        since = time.monotonic()
        ready, _ = ray.wait(slices, num_returns=1, timeout=self._timeout() if counts else None)
        if counts:
            self._left -= time.monotonic() - since
        if not ready:
            raise TimeoutError(
                f"not done after running for {self._seconds:g} s (cluster.evaluation_timeout_seconds): a slower"
                " evaluation needs more, a hung worker is to be looked for"
            )
        return ready[0]


def start_slice(cluster: ClusterConfig, function: Callable[..., Any], *arguments: Any) -> Slice:
    """Begins `function(*arguments)` on an evaluation worker; of object references the task gets the objects."""
    return _announced.options(**evaluation_options(cluster)).remote(function, *arguments)


@ray.remote(num_returns="streaming")
def _announced(function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    yield None
    yield function(*arguments)
