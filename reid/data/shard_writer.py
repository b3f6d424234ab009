"""One shard: a WebDataset tar of the images that the plan gave it, and a part file that lets a later run keep it.

The tars are plain WebDataset: `<key>.jpg`, `<key>.json` and, where there is one, `<key>.mask.png`, next to each other.
Ours differ from `webdataset.ShardWriter`'s in being the same bytes every time (no clock, no user) and in the index of
byte offsets that comes with them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from reid import storage
from reid.contracts import Record
from reid.data.decode import UnreadableImageError
from reid.data.image_source import SourceImage, read_source_image, read_source_mask
from reid.data.keypoint_labels import clean_keypoints
from reid.data.manifest import (
    Index,
    IndexRow,
    ShardInfo,
    SkippedSample,
    index_from_parquet,
    index_from_rows,
    index_to_parquet,
)
from reid.data.shard_plan import PackConfig, ShardTask, metadata_of
from reid.storage import Location

logger = logging.getLogger(__name__)

PARTS_FOLDER: Final = ".parts"
"""Inside the staging folder: results of finished shards."""
_BLOCK: Final = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    """A written shard."""

    info: ShardInfo
    index: Index
    skipped: tuple[SkippedSample, ...]
    repairs: dict[str, int]
    kept: bool = False
    """Found finished from an earlier run."""


class _TarWriter:
    """Appends members to a tar, hashing, and tells where their data begin. The same members give the same bytes."""

    def __init__(self, file: BinaryIO):
        self.file, self.position, self.digest = file, 0, hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        header = tarfile.TarInfo(name)  # mode 0644, no clock, no owner
        header.size = len(data)
        self._write(header.tobuf(tarfile.GNU_FORMAT))
        offset = self.position
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return offset

    def finish(self) -> None:
        self._write(bytes(2 * _BLOCK))

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.position += len(data)


def write_shard(task: ShardTask, folder: Location, config: PackConfig) -> ShardResult:
    """Writes the tar of one task and its part file into the staging folder; keeps both when they are there already.

    Bad images are left out and named in the result; deciding that they are too many is `finish_shard_set`'s.
    """
    kept = _finished_result(task, folder)
    if kept is not None:
        return kept
    parts = folder.child(PARTS_FOLDER)
    storage.make_folder(parts)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=parts.local_path if parts.is_local else None) as scratch:
        path = Path(scratch) / task.name
        result = _write_tar(task, path, config)
        target = folder.child(task.name)
        if target.is_local:
            storage.sync_file(path)
            os.replace(path, target.local_path)
            storage.sync_folder(target.local_path.parent)
        else:
            storage.upload_file(path, target)
    storage.write_bytes_atomic(_part_of(task, folder), _part_bytes(task, result))
    return result


def _write_tar(task: ShardTask, path: Path, config: PackConfig) -> ShardResult:
    rows: list[IndexRow] = []
    skipped: list[SkippedSample] = []
    repairs: Counter[str] = Counter()
    with open(path, "xb") as file:
        tar = _TarWriter(file)
        for record in task.records:
            try:
                image = read_source_image(
                    record.path,
                    min_side=config.min_side,
                    max_pixels=config.max_pixels,
                    max_side=config.max_side,
                    jpeg_quality=config.jpeg_quality,
                )
            except UnreadableImageError as error:
                logger.warning("skipped %s image %s: %s", record.split, record.key, error)
                skipped.append(SkippedSample(split=record.split, key=record.key, reason=error.reason))
                continue
            repairs.update(image.repairs)
            rows.append(_add_sample(tar, task.number, record, image, config, repairs))
        tar.finish()
        size, sha256 = tar.position, tar.digest.hexdigest()
    return ShardResult(
        info=ShardInfo(name=task.name, split=task.split, size=size, sha256=sha256, count=len(rows)),
        index=index_from_rows(rows),
        skipped=tuple(skipped),
        repairs=dict(sorted(repairs.items())),
    )


def _add_sample(
    tar: _TarWriter, shard: int, record: Record, image: SourceImage, config: PackConfig, repairs: Counter[str]
) -> IndexRow:
    keypoints = None
    if record.keypoints is not None:
        keypoints, counts = clean_keypoints(record.keypoints, image.source_width, image.source_height)
        repairs.update({f"keypoints_{kind}": count for kind, count in counts.items()})
        keypoints = _scaled(keypoints, image)
    metadata = metadata_of(record) | {"width": image.width, "height": image.height}
    metadata["keypoints"] = None if keypoints is None else keypoints.tolist()
    mask = None
    if config.masks and record.mask_path is not None:
        try:
            mask = read_source_mask(record.mask_path, image)
        except UnreadableImageError as error:
            logger.warning("packed %s image %s without its mask: %s", record.split, record.key, error)
            repairs[error.reason] += 1
    image_offset = tar.add(f"{record.key}.{image.ending}", image.data)
    tar.add(f"{record.key}.json", json.dumps(metadata, sort_keys=True, allow_nan=False).encode())
    mask_offset = -1 if mask is None else tar.add(f"{record.key}.mask.png", mask)
    return IndexRow(
        key=record.key,
        split=record.split,
        vehicle_id=record.vehicle_id,
        shard=shard,
        image_offset=image_offset,
        image_size=len(image.data),
        mask_offset=mask_offset,
        mask_size=-1 if mask is None else len(mask),
        width=image.width,
        height=image.height,
        camera_id=record.camera_id or "",
        timestamp=record.timestamp or "",
        keypoints=keypoints,
        orientation=-1 if record.orientation is None else record.orientation,
        subsets=record.subsets,
    )


def _scaled(keypoints: NDArray[np.float32], image: SourceImage) -> NDArray[np.float32]:
    """Points of the source image in the stored one. Convention: pixel centres at integers."""
    if (image.width, image.height) == (image.source_width, image.source_height):
        return keypoints
    scale = np.array([image.width / image.source_width, image.height / image.source_height], dtype=np.float32)
    moved = keypoints.copy()
    visible = keypoints[:, 2] > 0
    moved[visible, :2] = (keypoints[visible, :2] + 0.5) * scale - 0.5
    return moved


def _part_of(task: ShardTask, folder: Location) -> Location:
    return folder.child(f"{PARTS_FOLDER}/{task.name}.parquet")


def _part_bytes(task: ShardTask, result: ShardResult) -> bytes:
    about = {
        "digest": task.digest,
        "number": task.number,
        "info": result.info.model_dump(mode="json"),
        "skipped": [sample.model_dump(mode="json") for sample in result.skipped],
        "repairs": result.repairs,
    }
    return index_to_parquet(result.index, {"shard": json.dumps(about)})


def _finished_result(task: ShardTask, folder: Location) -> ShardResult | None:
    """The result of an earlier run, when its tar is still what it was."""
    part, tar = _part_of(task, folder), folder.child(task.name)
    try:
        index, notes = index_from_parquet(storage.read_bytes(part), part.uri)
        about = json.loads(notes["shard"])
        if (about["digest"], about["number"]) != (task.digest, task.number):
            return None
        info = ShardInfo.model_validate(about["info"])
        skipped = tuple(SkippedSample.model_validate(sample) for sample in about["skipped"])
        if storage.sha256_of(tar) != info.sha256:
            return None
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return ShardResult(info=info, index=index, skipped=skipped, repairs=about["repairs"], kept=True)
