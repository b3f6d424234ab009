"""What the workers of a run want of the training loop: to stop when the driver asks, to save when a node goes away."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import ray.train

from cluster.run_marks import StopMark
from reid.training.workers import Wish


class WorkerWishes:
    """Asked after every step on every worker, in a `with` block.

    `reid.training.workers.WishPoll` makes the wish of one worker the decision of all at the same step.
    """

    def __init__(self, mark: StopMark | None, steps_between_looks: int) -> None:
        """Looks at nothing yet.

        Args:
            mark: The run folder's, for one worker of the run; None for the others.
            steps_between_looks: Steps between two questions to Ray about the nodes, which all workers ask together.
        """
        self._mark = mark
        self._steps_between_looks = steps_between_looks
        self._steps = 0
        self._nodes_going: set[str] = set()
        self._stop_wanted = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_for_mark, name="stop-mark", daemon=True)

    def __enter__(self) -> Self:
        if self._mark is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._mark is not None:
            self._thread.join()

    def __call__(self) -> Wish:
        """The wish after a step."""
        self._steps += 1
        if self._steps % self._steps_between_looks == 0 and self._another_node_goes():
            return Wish.SAVE
        return Wish.STOP if self._stop_wanted.is_set() else Wish.NOTHING

    def _another_node_goes(self) -> bool:
        """Whether Ray has announced the end of a node of this run that it had not announced before."""
        preemption = ray.train.get_preemption_info()
        going = set() if preemption is None else set(preemption.preempted_node_ids)
        is_new = not going <= self._nodes_going
        self._nodes_going |= going
        return is_new

    def _look_for_mark(self) -> None:
        assert self._mark is not None
        while not self._ended.wait(self._mark.poll_seconds):
            if self._mark.is_there():
                self._stop_wanted.set()
                return
