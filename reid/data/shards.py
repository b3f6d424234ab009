"""Packing: records of raw images to a shard set, one independent task per shard.

`plan_shards` deals the identities to shards, `write_shard` makes one tar (this is what runs in parallel), and
`join_results` sums up what `build_set` then makes visible. A packing run that died continues where it was. Nothing
of the time or the place gets into the content: the set's hash depends on the photographs and the settings only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reid import storage
from reid.contracts import Record
from reid.data.index import training_labels
from reid.data.manifest import PACKED_SCHEMA, Manifest, SkippedSample
from reid.data.shard_plan import PackConfig, PackPlan, ShardTask, content_settings, plan_shards
from reid.data.shard_writer import write_shard
from reid.data.staging import RunTasks, ShardResult, build_set, in_plan_order, join_indexes, run_in_this_process
from reid.storage import Location

__all__ = [
    "PackConfig",
    "PackPlan",
    "ShardResult",
    "ShardTask",
    "join_results",
    "pack_shards",
    "plan_shards",
    "write_shard",
]

logger = logging.getLogger(__name__)


def join_results(
    plan: PackPlan, results: Sequence[ShardResult], source: Mapping[str, Any] | None = None
) -> tuple[Manifest, bytes]:
    """The manifest over the results of all tasks, and the bytes of the index; `source` as `pack_shards` has it.

    Raises:
        ValueError: results do not belong to the plan, nothing is left, or too many images were bad.
    """
    results = in_plan_order([task.name for task in plan.tasks], results)
    skipped = sorted((s for result in results for s in result.skipped), key=lambda s: (s.split, s.key))
    refuse_too_many_bad(skipped, plan)
    index, data, info = join_indexes(results)
    if len(index) == 0:
        raise ValueError("no image is left to pack")
    labels, _ = training_labels(index.split, index.vehicle_id)
    repairs: Counter[str] = Counter()
    for result in results:
        repairs.update(result.repairs)
    per_split = {split: index.vehicle_id[index.split == split].tolist() for split in plan.source_counts}
    manifest = Manifest(
        schema_version=PACKED_SCHEMA,
        name=plan.config.name,
        source_counts=plan.source_counts,
        counts={split: len(vehicles) for split, vehicles in per_split.items()},
        identities={split: len(set(vehicles)) for split, vehicles in per_split.items()},
        skipped=dict(sorted(Counter(sample.reason for sample in skipped).items())),
        skipped_samples=tuple(skipped),
        repairs=dict(sorted(repairs.items())),
        labels=labels,
        num_classes=len(labels),
        shards=tuple(result.info for result in results),
        index=info,
        packing=content_settings(plan.config),
        source=dict(source or {}),
        plan_digest=plan.digest,
    ).sealed()
    return manifest, data


def refuse_too_many_bad(skipped: Sequence[SkippedSample], plan: PackPlan) -> None:
    """ValueError when more images were skipped than `max_bad_fraction` of the plan allows."""
    limit = plan.config.max_bad_fraction
    if len(skipped) <= limit * plan.num_images:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(s.reason for s in skipped).most_common())
    first = ", ".join(f"{sample.split}/{sample.key} ({sample.reason})" for sample in skipped[:3])
    raise ValueError(
        f"{len(skipped)} of {plan.num_images} images are bad ({reasons}), more than max_bad_fraction = {limit:g}:"
        f" {first} ...; mend the source, or raise the limit if this is as it should be"
    )


def pack_shards(
    records: Sequence[Record],
    uri: str | Path,
    config: PackConfig | None = None,
    *,
    source: Mapping[str, Any] | None = None,
    run_tasks: RunTasks = run_in_this_process,
    overwrite: bool = False,
    progress: Callable[[int, int, ShardResult], None] | None = None,
) -> Manifest:
    """Packs a data set into the folder `uri` (local or object store) and returns its manifest.

    A second call with the same input finds the finished set and does nothing; after an interruption it keeps the shards
    that were finished.

    Args:
        records: All images of the data set, any order.
        uri: The folder to make.
        config: How to pack.
        source: Options of the reader that decided what the records are, for the manifest.
        run_tasks: Who writes the shards; the result does not depend on it.
        overwrite: Replace another set that is at `uri`.
        progress: Called with (shards done, shards, result) after each shard.

    Raises:
        ValueError: bad input (see `plan_shards`), too many bad images, or another set at `uri` without `overwrite`.
    """
    plan = plan_shards(records, config or PackConfig())

    def write(staging: Location) -> tuple[Manifest, bytes]:
        sizes: Counter[str] = Counter(task.split for task in plan.tasks)
        logger.info(
            "packing %s: %d images = %s",
            plan.config.name,
            plan.num_images,
            " + ".join(f"{plan.source_counts[split]} {split} in {sizes[split]} shards" for split in plan.source_counts),
        )
        results: list[ShardResult] = []
        skipped: list[SkippedSample] = []
        for result in run_tasks(plan.tasks, staging, partial(write_shard, config=plan.config)):
            results.append(result)
            skipped.extend(result.skipped)
            refuse_too_many_bad(skipped, plan)
            if progress is not None:
                progress(len(results), len(plan.tasks), result)
        return join_results(plan, results, source)

    target = storage.open_location(uri)
    return build_set(target, name=plan.config.name, digest=plan.digest, write=write, overwrite=overwrite)
