"""Enriching shards on a Ray cluster: one task per shard, as many at a time as there are CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import ray

from cluster.shard_tasks import in_ray_tasks
from reid.data.additions import Enrichment
from reid.data.enriched_shard import EnrichTask, enrich_shard
from reid.data.staging import ShardResult
from reid.storage import Location, open_location


def run_on_ray(tasks: Sequence[EnrichTask], folder: Location, enrichment: Enrichment) -> Iterator[ShardResult]:
    """Writes the shards of `tasks` by Ray tasks and yields each result as it comes; for `enrich_shards(run_tasks=...)`.

    A local source and a local `folder` must be visible under the same paths on all nodes.
    """
    reference = ray.put(enrichment)
    return in_ray_tasks(_enrich_shard, ((task, folder.uri, reference) for task in tasks))


def _enrich_shard(task: EnrichTask, folder: str, enrichment: Enrichment) -> ShardResult:
    cv2.setNumThreads(1)  # the task was given one CPU
    return enrich_shard(task, open_location(folder), enrichment)
