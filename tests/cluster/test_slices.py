"""Tasks of an evaluation on a local Ray: hung and killed ones, and what counts as their time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import ray

from cluster.slices import Allowance, start_slice
from reid.config import ClusterConfig

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
