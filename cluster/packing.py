"""Packing shards on a Ray cluster: one task per shard, as many at a time as there are CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import ray

from reid.data.shards import PackConfig, ShardResult, ShardTask, write_shard
from reid.storage import Location, open_location

TASK_RETRIES = 3
"""A task whose process or node dies runs again elsewhere; it writes the same bytes to the same name."""


def run_on_ray(tasks: Sequence[ShardTask], folder: Location, config: PackConfig) -> Iterator[ShardResult]:
    """Writes the shards of `tasks` by Ray tasks and yields each result as it comes; for `pack_shards(run_tasks=...)`.

    The raw images and a local `folder` must be visible under the same paths on all nodes. No more tasks are handed out
    than can soon run, so that stopping early (too many bad images) leaves little behind.
    """
    write = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(_write_shard)
    config_reference = ray.put(config)
    waiting = iter(tasks)
    running: list[ray.ObjectRef[ShardResult]] = []
    try:
        while True:
            limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # the cluster may grow meanwhile
            while len(running) < limit and (task := next(waiting, None)) is not None:
                running.append(write.remote(task, folder.uri, config_reference))
            if not running:
                return
            finished, running = ray.wait(running, num_returns=1)
            yield ray.get(finished[0])
    finally:
        for reference in running:
            ray.cancel(reference)


def _write_shard(task: ShardTask, folder: str, config: PackConfig) -> ShardResult:
    cv2.setNumThreads(1)  # the task was given one CPU
    return write_shard(task, open_location(folder), config)
