"""Tasks of an evaluation on a local Ray: hung and killed ones, and what counts as their time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import ray

from cluster.progress_board import ProgressBoard
from cluster.slices import Allowance, run_slices, start_slice
from reid.config import ClusterConfig
from reid.progress import Progress, Stages

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

SHARED = ClusterConfig(cpus_per_evaluation_worker=0)
WHOLE_RAY = ClusterConfig(cpus_per_evaluation_worker=3)


def test_a_hung_task_is_given_up_and_its_resources_are_free_again(local_ray: None) -> None:
    with pytest.raises(TimeoutError, match=r"not done after running for 1 s \(cluster.evaluation_timeout_seconds\)"):
        Allowance(1).results([start_slice(WHOLE_RAY, time.sleep, 3600)])
    assert Allowance(60).results([start_slice(WHOLE_RAY, abs, -5)]) == [5]


def test_one_hung_task_among_others_ends_all(local_ray: None) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        Allowance(5).results([start_slice(SHARED, time.sleep, seconds) for seconds in (0, 3600)])
    assert time.monotonic() - began < 120


def test_waiting_for_resources_does_not_count(local_ray: None) -> None:
    @ray.remote(num_cpus=3)
    def training() -> None:
        time.sleep(8)

    busy = training.remote()
    assert Allowance(4).results([start_slice(WHOLE_RAY, abs, -5), start_slice(WHOLE_RAY, abs, -6)]) == [5, 6]
    ray.get(busy)


def test_steps_of_an_evaluation_share_its_time(local_ray: None) -> None:
    allowance = Allowance(6)
    allowance.results([start_slice(SHARED, time.sleep, 4)])
    with pytest.raises(TimeoutError):
        allowance.results([start_slice(SHARED, time.sleep, 4)])


def test_a_killed_task_is_repeated_alone(tmp_path: Path, local_ray: None) -> None:
    def note_and_die_once(name: str, dies: bool) -> str:
        with (tmp_path / name).open("a") as file:
            file.write("begun ")
        if dies and (tmp_path / name).read_text() == "begun ":
            os.kill(os.getpid(), signal.SIGKILL)
        return name

    slices = [start_slice(SHARED, note_and_die_once, name, dies) for name, dies in (("a", False), ("b", True))]
    assert Allowance(120).results(slices) == ["a", "b"]
    assert [(tmp_path / name).read_text() for name in "ab"] == ["begun ", "begun begun "]


class Told:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.counts: list[tuple[str, int, int]] = []

    def __call__(self, title: str) -> Progress:
        return lambda done, total: self.counts.append((title, done, total))


def count_slowly(seconds: float, total: int, *, stages: Stages) -> int:
    tell = stages("things done")
    for done in range(1, total + 1):
        tell(done, total)
        time.sleep(seconds / total)
    return total


def test_a_board_shows_how_far_all_slices_are_together(local_ray: None) -> None:
    told = Told()
    board = ProgressBoard(told)
    slices = [(4.0, 10), (6.0, 10)]
    assert run_slices(SHARED, count_slowly, slices, Allowance(120), board) == [10, 10]
    # Of a slice that has not begun as much is expected; the last count of all is the whole.
    assert {title for title, _, _ in told.counts} == {"things done"}
    assert {total for _, _, total in told.counts} == {20}
    done = [count for _, count, _ in told.counts]
    assert done == sorted(done)
    assert any(0 < count < 20 for count in done)
    before = len(told.counts)
    assert run_slices(SHARED, count_slowly, [(3.0, 5)], Allowance(120), board) == [5]
    assert {total for _, _, total in told.counts[before:]} == {5}


def test_a_lost_board_costs_nothing_but_the_counts(local_ray: None) -> None:
    told = Told()
    board = ProgressBoard(told)
    ray.kill(board._board)
    assert run_slices(SHARED, count_slowly, [(3.0, 5)], Allowance(120), board) == [5]
    assert not told.counts


def test_a_board_does_not_stretch_the_time_that_is_allowed(local_ray: None) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not done after running for 3 s"):
        run_slices(SHARED, count_slowly, [(3600.0, 3600)], Allowance(3), ProgressBoard(Told()))
    assert time.monotonic() - began < 60
