"""Enrichment: a finished shard set, and a function of its samples, to a new complete set that holds more.

Masks, keypoints and part boxes are computed once and stored beside the images. The new set has the same samples in the
same order, so a plan over either is the same; it is made as packing makes one (`reid.data.staging`): a task per shard,
in parallel, continued after a kill, found again when it is there. The source is only read, and a damaged one refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from reid import storage
from reid.contracts import DataError
from reid.data.additions import BOXES, IMAGE, KEYPOINTS, MASK, Enrichment, Provenance
from reid.data.enriched_shard import EnrichTask, enrich_shard
from reid.data.index import Index
from reid.data.manifest import ENRICHED_SCHEMA, Addition, Manifest
from reid.data.shard_set import open_shards
from reid.data.staging import RunTasks, ShardResult, build_set, in_plan_order, join_indexes, run_in_this_process
from reid.storage import Location

logger = logging.getLogger(__name__)


def enrich_shards(
    source: str | Path,
    target: str | Path,
    enrichment: Enrichment,
    *,
    run_tasks: RunTasks = run_in_this_process,
    overwrite: bool = False,
    progress: Callable[[int, int, ShardResult], None] | None = None,
) -> Manifest:
    """Writes the shard set at `source`, enriched, into the folder `target` and returns the new manifest.

    A second call with the same input finds the finished set and does nothing; after an interruption it keeps the shards
    that were finished.

    Args:
        source: Folder of the set: local path, `s3://`, `gs://`, `http(s)://`.
        target: The folder to make: local path, `s3://`, `gs://`.
        enrichment: What to add.
        run_tasks: Who writes the shards; the result does not depend on it.
        overwrite: Replace another set that is at `target`.
        progress: Called with (images done, images, result) after each shard.

    Raises:
        DataError: the source is no shard set, or damaged.
        ValueError: the target is the source or inside it, or holds something else; no image was given anything.
    """
    where, to = storage.open_location(source), storage.open_location(target)
    if f"{to.uri.rstrip('/')}/".startswith(f"{where.uri.rstrip('/')}/"):
        raise ValueError(f"the target {to.uri} is the source or inside it: choose a folder beside {where.uri}")
    try:
        with open_shards(where) as shards:
            manifest, index = shards.manifest, shards.index
    except (ValueError, OSError) as error:
        raise DataError(f"{where.uri}: {error}") from error
    provenance = enrichment.provenance
    tasks = plan_tasks(where.uri, manifest, index, provenance)
    digest = _digest_of(manifest.hash, provenance)

    def write(staging: Location) -> tuple[Manifest, bytes]:
        logger.info("%s for %s: %d images in %d shards", provenance.name, manifest.name, len(index), len(tasks))
        results: list[ShardResult] = []
        done = 0
        for result in run_tasks(tasks, staging, partial(enrich_shard, enrichment=enrichment)):
            results.append(result)
            done += result.info.count
            if progress is not None:
                progress(done, len(index), result)
        return join_results(manifest, provenance, tasks, results, digest)

    return build_set(to, name=manifest.name, digest=digest, write=write, overwrite=overwrite)


def plan_tasks(source: str, manifest: Manifest, index: Index, provenance: Provenance) -> tuple[EnrichTask, ...]:
    """One task for each shard of a set.

    Raises:
        DataError: the index is not in the order of the shards.
    """
    if np.any(np.diff(index.shard) < 0):
        raise DataError(f"the index of {source} is not in the order of its shards: pack the set again")
    return tuple(
        EnrichTask(
            number=number,
            info=info,
            source=source,
            rows=index.take(np.flatnonzero(index.shard == number).astype(np.int64)),
            digest=_digest_of(info.sha256, provenance),
        )
        for number, info in enumerate(manifest.shards)
    )


def _digest_of(source_hash: str, provenance: Provenance) -> str:
    content = [ENRICHED_SCHEMA, source_hash, provenance.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def join_results(
    source: Manifest,
    provenance: Provenance,
    tasks: Sequence[EnrichTask],
    results: Sequence[ShardResult],
    digest: str,
) -> tuple[Manifest, bytes]:
    """The manifest of the enriched set, and the bytes of its index.

    Raises:
        ValueError: results do not belong to the tasks, or no image was given anything.
    """
    ordered = in_plan_order([task.info.name for task in tasks], results)
    problems: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for result in ordered:
        problems.update(result.repairs)
        counts.update(result.counts)
    members = {name: counts[name] for name in (MASK, KEYPOINTS, BOXES, IMAGE) if counts[name]}
    if not members:
        found = ", ".join(f"{count} {kind}" for kind, count in problems.most_common())
        raise ValueError(f"{provenance.name} gave none of {source.num_images} images anything ({found or 'no reason'})")
    measures = sorted({name for result in ordered for name in result.sums})
    # The order of the shards, not of the results: a sum of floats depends on it.
    sums = {name: math.fsum(result.sums.get(name, 0.0) for result in ordered) for name in measures}
    _, data, info = join_indexes(ordered)
    addition = Addition(
        **provenance.model_dump(),
        source_hash=source.hash,
        members=members,
        problems=dict(sorted(problems.items())),
        means={name: round(sums[name] / counts[name], 6) for name in measures},
    )
    changes = {
        "schema_version": ENRICHED_SCHEMA,
        "shards": tuple(result.info for result in ordered),
        "index": info,
        "additions": (*source.additions, addition),
        "plan_digest": digest,
    }
    return source.model_copy(update=changes).sealed(), data
