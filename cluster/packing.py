"""Packing shards on a Ray cluster: one task per shard, as many at a time as there are CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import ray

from cluster.shard_tasks import in_ray_tasks
from reid.data.shards import PackConfig, ShardResult, ShardTask, write_shard
from reid.storage import Location, open_location


def run_on_ray(tasks: Sequence[ShardTask], folder: Location, config: PackConfig) -> Iterator[ShardResult]:
    """Writes the shards of `tasks` by Ray tasks and yields each result as it comes; for `pack_shards(run_tasks=...)`.

    The raw images and a local `folder` must be visible under the same paths on all nodes.
    """
    reference = ray.put(config)
    return in_ray_tasks(_write_shard, ((task, folder.uri, reference) for task in tasks))


def _write_shard(task: ShardTask, folder: str, config: PackConfig) -> ShardResult:
    cv2.setNumThreads(1)  # the task was given one CPU
    return write_shard(task, open_location(folder), config)
