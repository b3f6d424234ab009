"""One shard: a WebDataset tar of the images that the plan gave it.

The tars are plain WebDataset: `<key>.jpg`, `<key>.json` and, where there is one, `<key>.mask.png`, next to each other.
Ours differ from `webdataset.ShardWriter`'s in being the same bytes every time (no clock, no user) and in the index of
byte offsets that comes with them.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.contracts import Record
from reid.data.decode import UnreadableImageError
from reid.data.image_source import SourceImage, read_source_image, read_source_mask
from reid.data.index import IndexRow, index_from_rows
from reid.data.keypoint_labels import clean_keypoints
from reid.data.manifest import ShardInfo, SkippedSample
from reid.data.shard_plan import PackConfig, ShardTask, metadata_of
from reid.data.staging import ShardResult, stage_shard
from reid.data.tar import TarWriter
from reid.storage import Location

logger = logging.getLogger(__name__)


def write_shard(task: ShardTask, folder: Location, config: PackConfig) -> ShardResult:
    """Writes the tar of one task and its part file into the staging folder; keeps both when they are there already.

    Bad images are left out and named in the result; deciding that they are too many is `join_results`'s.
    """
    return stage_shard(task.name, task.number, task.digest, folder, lambda path: _write_tar(task, path, config))


def _write_tar(task: ShardTask, path: Path, config: PackConfig) -> ShardResult:
    rows: list[IndexRow] = []
    skipped: list[SkippedSample] = []
    repairs: Counter[str] = Counter()
    with open(path, "xb") as file:
        tar = TarWriter(file)
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
    tar: TarWriter, shard: int, record: Record, image: SourceImage, config: PackConfig, repairs: Counter[str]
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
