"""Work on shards by Ray tasks: handed out a few at a time, repeated when a process or a node dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import ray
import torch
from ray.exceptions import RayTaskError

from cluster.resources import check_task_resources
from reid.data.staging import ShardResult, ShardWork
from reid.storage import Location, open_location

TASK_RETRIES = 3
"""A task whose process or node dies runs again elsewhere; it writes the same bytes to the same name."""


def run_on_ray(
    tasks: Sequence[Any], folder: Location, work: ShardWork, *, num_cpus: int = 1, num_gpus: float = 0
) -> Iterator[ShardResult]:
    """Writes the shards of `tasks` by Ray tasks and yields each result as it comes; for `run_tasks=` of packing and
    enrichment.

    No more tasks are handed out than can soon run, so that stopping early (too many bad images) leaves little behind.
    Local sources and a local `folder` must be visible under the same paths on all nodes.

    Args:
        tasks: One for each shard.
        folder: The staging folder.
        work: Writes the shard of a task.
        num_cpus: CPUs, and threads, of each task.
        num_gpus: GPUs of each task; a fraction shares one.

    Raises:
        ValueError: No node could ever run such a task.
        ValueError, OSError: What a task raised, such as DataError.
    """
    check_task_resources(num_cpus, num_gpus)
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=TASK_RETRIES)(_carry_out)
    reference = ray.put(work)
    waiting = iter(tasks)
    running: list[ray.ObjectRef[ShardResult]] = []
    try:
        while True:
            resources = ray.cluster_resources()  # the cluster may grow meanwhile
            slots = resources.get("CPU", 1.0) / num_cpus
            if num_gpus:
                slots = min(slots, resources.get("GPU", 1.0) / num_gpus)
            limit = 2 * max(1, int(slots))
            while len(running) < limit and (task := next(waiting, None)) is not None:
                running.append(remote.remote(task, folder.uri, reference, num_cpus))
            if not running:
                return
            finished, running = ray.wait(running, num_returns=1)
            yield _result(finished[0])
    finally:
        for unfinished in running:
            ray.cancel(unfinished)


def _result(reference: ray.ObjectRef[ShardResult]) -> ShardResult:
    """The result of a task; what a user can mend is raised as the task raised it, without Ray's traceback around it."""
    try:
        result: ShardResult = ray.get(reference)
        return result
    except RayTaskError as error:
        if isinstance(error.cause, (ValueError, OSError)):
            raise error.cause from None
        raise


def _carry_out(task: Any, folder: str, work: ShardWork, num_threads: int) -> ShardResult:
    cv2.setNumThreads(1)  # the work has threads of its own if it wants them
    torch.set_num_threads(num_threads)
    return work(task, open_location(folder))
