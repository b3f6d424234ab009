"""How far tasks on the cluster are, shown by the driver: they write it on a board, which the driver reads now and then.

What is written there changes no result: a task that dies is repeated and begins to count anew.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError

from reid.progress import Progress, Stages, labelled

SECONDS_BETWEEN_COUNTS: Final = 1.0
"""Each task writes no more often, and the driver reads no more often."""


@dataclass(frozen=True)
class BoardPlace:
    """Where a task writes."""

    board: Any
    """Handle of the actor."""
    number: int

    def begin(self, title: str) -> Progress:
        """Begins a stage of the task; writes now and then, and at the end."""
        last = -SECONDS_BETWEEN_COUNTS

        def note(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if done >= total or now - last >= SECONDS_BETWEEN_COUNTS:
                last = now
                self.board.write.remote(self.number, title, done, total)

        return note


class ProgressBoard:
    """The driver's side: places for tasks that work at the same time, and what they wrote together."""

    def __init__(self, stages: Stages) -> None:
        """Starts the actor.

        Args:
            stages: Whom to tell.
        """
        self._board = _Board.remote()  # type: ignore[attr-defined]
        self._told = self._stages = stages
        self._progress: dict[str, Progress] = {}
        self._numbers = range(0)

    def about(self, *labels: str) -> None:
        """What the titles of the next tasks say beside what they count."""
        self._stages = labelled(self._told, *labels)

    def places(self, num_tasks: int) -> list[BoardPlace]:
        """Places for tasks that share some work about evenly; what others wrote before is done."""
        self._numbers = range(self._numbers.stop, self._numbers.stop + num_tasks)
        self._progress = {}
        return [BoardPlace(self._board, number) for number in self._numbers]

    def show(self) -> None:
        """Tells how far the tasks are together; a board that is lost is not worth an error."""
        try:
            written = ray.get(self._board.read.remote(self._numbers), timeout=SECONDS_BETWEEN_COUNTS)
        except RayError:
            return
        for title, counts in _by_title(written).items():
            if title not in self._progress:
                self._progress[title] = self._stages(title)
            done, total = (sum(column) for column in zip(*counts, strict=True))
            # Tasks that have not begun are about as large as the others.
            self._progress[title](done, total * len(self._numbers) // len(counts))


def places_on(board: ProgressBoard | None, num_tasks: int) -> Sequence[BoardPlace | None]:
    """Places for tasks, or none where nobody wants to know."""
    return [None] * num_tasks if board is None else board.places(num_tasks)


def _by_title(written: dict[int, dict[str, tuple[int, int]]]) -> dict[str, list[tuple[int, int]]]:
    found = defaultdict(list)
    for counts in written.values():
        for title, count in counts.items():
            found[title].append(count)
    return found


@ray.remote(num_cpus=0)
class _Board:
    def __init__(self) -> None:
        self._written: dict[int, dict[str, tuple[int, int]]] = {}

    def write(self, place: int, title: str, done: int, total: int) -> None:
        self._written.setdefault(place, {})[title] = done, total

    def read(self, places: range) -> dict[int, dict[str, tuple[int, int]]]:
        return {place: self._written[place] for place in places if place in self._written}
