"""Which images go into which shard: a pure function of the records, decided before anything is written."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from reid.contracts import Record, Settings, Split
from reid.data.manifest import PACKED_SCHEMA, SPLITS

KEY_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class PackConfig(Settings):
    """How raw images become shards."""

    name: str = "vehicles"
    """Name of the data set, for people."""
    target_shard_bytes: int = Field(256_000_000, gt=0)
    """Shards are made so many that none is much larger, bytes of raw images."""
    min_train_shards: int = Field(64, gt=0)
    """At least so many training shards, if identities allow: each of a batch's P lanes then has several."""
    min_evaluation_shards: int = Field(8, gt=0)
    """The same for query, gallery and test, where shards only spread the work."""
    min_side: int = Field(8, gt=0)
    """Images with a shorter side are skipped, pixels."""
    max_pixels: int = Field(50_000_000, gt=0)
    """Images whose header declares more are skipped undecoded."""
    max_side: int | None = Field(None, gt=0)
    """Longer images are made smaller and encoded anew, pixels; None: every image keeps its bytes."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """Of images that must be encoded anew."""
    masks: bool = True
    """Store the foreground masks of data sets that have them."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Packing fails when more of the images than this must be skipped."""
    allow_overlap: bool = False
    """Accept vehicles that are both in train and in query, gallery or test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """What one shard is to hold."""

    number: int
    """Position in the set."""
    name: str
    split: Split
    records: tuple[Record, ...]
    """Sorted by vehicle id and key."""
    digest: str
    """Of the settings, the records and the raw files' sizes and times: a finished shard of the same digest is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackPlan:
    """The shards of a set, before any is written."""

    tasks: tuple[ShardTask, ...]
    config: PackConfig
    source_counts: dict[str, int]
    """Images by split."""
    digest: str
    """Of all tasks."""

    @property
    def num_images(self) -> int:
        """Images over all splits."""
        return sum(self.source_counts.values())


def plan_shards(records: Sequence[Record], config: PackConfig) -> PackPlan:
    """Deals the identities of each split to shards, balanced by their number of images.

    The order of the records is irrelevant. Largest identity first to the shard with the fewest images (LPT rule: at
    most 4/3 of the best possible maximum).

    Raises:
        ValueError: no records; a key that is not `[A-Za-z0-9_-]{1,128}` or is there twice in a split; a record without
            vehicle id; a vehicle in train and in an evaluation split; more raw files missing than `max_bad_fraction`.
    """
    _check_records(records, config)
    stamps = _file_stamps(records, config)
    tasks: list[ShardTask] = []
    for split in SPLITS:
        members = [number for number, record in enumerate(records) if record.split == split]
        if not members:
            continue
        for shard, chosen in enumerate(_deal(records, stamps, members, split, config)):
            ordered = sorted(chosen, key=lambda number: (records[number].vehicle_id, records[number].key))
            tasks.append(
                ShardTask(
                    number=len(tasks),
                    name=f"{split}-{shard:06d}.tar",
                    split=split,
                    records=tuple(records[number] for number in ordered),
                    digest=_digest_of_task([(records[number], stamps[number]) for number in ordered], config),
                )
            )
    digest = hashlib.sha256("\n".join(f"{task.name} {task.digest}" for task in tasks).encode()).hexdigest()
    counts = Counter(record.split for record in records)
    source_counts: dict[str, int] = {split: counts[split] for split in SPLITS if counts[split]}
    return PackPlan(tasks=tuple(tasks), config=config, source_counts=source_counts, digest=digest)


def _check_records(records: Sequence[Record], config: PackConfig) -> None:
    if not records:
        raise ValueError("there are no records to pack: the data set's reader found no image")
    for record in records:
        if KEY_PATTERN.fullmatch(record.key) is None:
            raise ValueError(f"key {record.key!r} of {record.path} must match {KEY_PATTERN.pattern}: rename the image")
        if not record.vehicle_id:
            raise ValueError(f"{record.path} has no vehicle id")
        if record.split not in SPLITS:
            raise ValueError(f"{record.path} has split {record.split!r}, expected one of {', '.join(SPLITS)}")
    seen = Counter((record.split, record.key) for record in records)
    twice = sorted(name for name, count in seen.items() if count > 1)
    if twice:
        raise ValueError(f"{len(twice)} keys occur more than once in their split, the first is {twice[0]}")
    train = {record.vehicle_id for record in records if record.split == "train"}
    both = sorted(train & {record.vehicle_id for record in records if record.split != "train"})
    if both and not config.allow_overlap:
        raise ValueError(
            f"{len(both)} vehicles are in train and in an evaluation split, the first is {both[0]!r}: evaluation would"
            " measure memory; set allow_overlap to pack them all the same"
        )


Stamp = tuple[int, int, int, int]
"""Size in bytes and change time in ns of a raw image, and of its mask; -1 when missing."""


def _file_stamps(records: Sequence[Record], config: PackConfig) -> list[Stamp]:
    def stamp_of(path: Path | None) -> tuple[int, int]:
        if path is None:
            return -1, -1
        try:
            status = os.stat(path)
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    def stamps_of(record: Record) -> Stamp:
        return *stamp_of(record.path), *stamp_of(record.mask_path if config.masks else None)

    # A network file system answers one question in a millisecond, but many at a time.
    with ThreadPoolExecutor(16, thread_name_prefix="stat") as pool:
        stamps = list(pool.map(stamps_of, records, chunksize=256))
    missing = [record.path for record, stamp in zip(records, stamps, strict=True) if stamp[0] < 0]
    if len(missing) > config.max_bad_fraction * len(records):
        raise ValueError(
            f"{len(missing)} of {len(records)} image files cannot be found, the first is {missing[0]}:"
            " is the data set complete and its root folder right?"
        )
    return stamps


def _deal(
    records: Sequence[Record], stamps: Sequence[Stamp], members: Sequence[int], split: Split, config: PackConfig
) -> list[list[int]]:
    """Positions in `records` for each shard of a split."""
    by_vehicle: dict[str, list[int]] = {}
    for number in members:
        by_vehicle.setdefault(records[number].vehicle_id, []).append(number)
    num_bytes = sum(max(0, stamps[number][0]) for number in members)
    least = config.min_train_shards if split == "train" else config.min_evaluation_shards
    num_shards = min(len(by_vehicle), max(least, -(-num_bytes // config.target_shard_bytes)))
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    fullness = [(0, shard) for shard in range(num_shards)]
    for vehicle in sorted(by_vehicle, key=lambda name: (-len(by_vehicle[name]), name)):
        count, shard = heapq.heappop(fullness)
        shards[shard].extend(by_vehicle[vehicle])
        heapq.heappush(fullness, (count + len(by_vehicle[vehicle]), shard))
    return shards


def _digest_of_task(members: Iterable[tuple[Record, Stamp]], config: PackConfig) -> str:
    digest = hashlib.sha256(json.dumps([PACKED_SCHEMA, content_settings(config)], sort_keys=True).encode())
    for record, stamp in members:
        content = [str(record.path), str(record.mask_path), metadata_of(record), list(stamp)]
        digest.update(json.dumps(content, sort_keys=True).encode())
        if record.keypoints is not None:
            digest.update(np.ascontiguousarray(record.keypoints, dtype=np.float32).tobytes())
    return digest.hexdigest()


def content_settings(config: PackConfig) -> dict[str, Any]:
    """The settings that shape the content of a set; the others do not change its hash."""
    return config.model_dump(mode="json", exclude={"name", "max_bad_fraction", "allow_overlap"})


def metadata_of(record: Record) -> dict[str, Any]:
    """The JSON member of a sample, without what only the opened image tells."""
    return {
        "key": record.key,
        "split": record.split,
        "vehicle_id": record.vehicle_id,
        "camera_id": record.camera_id,
        "timestamp": record.timestamp,
        "orientation": record.orientation,
        "subsets": list(record.subsets),
        "attributes": dict(record.attributes),
    }
