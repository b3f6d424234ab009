"""Work on shards by Ray tasks: handed out a few at a time, repeated when a process or a node dies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import ray

from reid.data.staging import ShardResult

TASK_RETRIES = 3
"""A task whose process or node dies runs again elsewhere; it writes the same bytes to the same name."""


def in_ray_tasks(work: Any, calls: Iterable[tuple[Any, ...]]) -> Iterator[ShardResult]:
    """Calls a function once per shard in Ray tasks of one CPU and yields each result as it comes.

    No more tasks are handed out than can soon run, so that stopping early (too many bad images) leaves little behind.

    Args:
        work: Writes one shard.
        calls: Its arguments for each shard.
    """
    remote = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(work)
    waiting = iter(calls)
    running: list[ray.ObjectRef[ShardResult]] = []
    try:
        while True:
            limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # the cluster may grow meanwhile
            while len(running) < limit and (call := next(waiting, None)) is not None:
                running.append(remote.remote(*call))
            if not running:
                return
            finished, running = ray.wait(running, num_returns=1)
            yield ray.get(finished[0])
    finally:
        for reference in running:
            ray.cancel(reference)
