"""Plane images: from a shard set with keypoints, a set for one plane that holds that plane of every image, rectified.

Source: PPT section 4.4.2, the transformation in pixel space: each part of the raw images is warped to a sub-image, and
a network of its own learns from those. Planes, limits and target are those of the local branch (`find_planes`), applied
to the pixels of the stored image. The paper says neither how large the sub-images are nor how they are interpolated:
ours have the size that the network takes, and where the plane is larger than that each pixel is the mean of several
bilinear samples (without it fine structure would alias).

An image of the new set has key, identity, camera and split of the one it comes from. Those that do not show the plane,
and those that nobody annotated, are left out and counted. The set is made as every other (`reid.data.staging`): a task
per shard, in parallel, continued after a kill, found again when it is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field

from reid import storage
from reid.contracts import DataError, Settings
from reid.data.additions import Provenance
from reid.data.decode import UnreadableImageError, decode_image
from reid.data.enriched_shard import EnrichTask, members_of, source_content
from reid.data.enrichment import plan_tasks
from reid.data.index import Index, IndexRow, index_from_rows, training_labels
from reid.data.manifest import ENRICHED_SCHEMA, Addition, Manifest, SkippedSample
from reid.data.shard_set import open_shards
from reid.data.staging import (
    RunTasks,
    ShardResult,
    build_set,
    in_plan_order,
    join_indexes,
    run_in_this_process,
    stage_shard,
)
from reid.data.tar import TarWriter
from reid.keypoints import PLANE_NAMES
from reid.models.perspective import PlaneConfig, PlaneName, Planes, find_planes, warp_planes
from reid.storage import Location

logger = logging.getLogger(__name__)

ALGORITHM_VERSION: Final = 1
"""Raise it with any change of the pixels: sets made with another version are told apart by it."""
NOT_ANNOTATED: Final = "not_annotated"
NOT_SHOWN: Final = "plane_not_shown"
"""Why an image of the source has none in the set of a plane, as the manifest counts it."""
IMAGE: Final = "image"


class NoPlaneError(DataError):
    """No image of a set shows the plane."""


class PlaneImageConfig(Settings):
    """How plane images are made."""

    height: int = Field(256, ge=8)
    """Of a plane image, pixels; best the size that the network takes."""
    width: int = Field(256, ge=8)
    planes: PlaneConfig = PlaneConfig()
    """Plane table and limits, as of the local branch. `planes` and `grid` mean nothing here."""
    max_samples: int = Field(4, ge=1, le=16)
    """A pixel is the mean of n x n samples of the image, n as large as the plane needs it but at most this."""
    jpeg_quality: int = Field(95, ge=1, le=100)

    def provenance(self, plane: PlaneName) -> Provenance:
        """All that shapes the images of a plane's set, the libraries that compute them included."""
        settings = self.model_dump(mode="json", exclude={"planes": {"planes", "grid"}})
        version = f"planes {ALGORITHM_VERSION}, torch {torch.__version__}, opencv {cv2.__version__}"
        return Provenance(name=f"plane-images-{plane}", version=version, settings=settings)


def plane_pixels(
    image: NDArray[np.uint8], keypoints: NDArray[np.float32], plane: PlaneName, config: PlaneImageConfig
) -> NDArray[np.uint8] | None:
    """One plane of an image, rectified: what a viewer who faces it sees, both sides with the vehicle's front at left.

    Convention: as of `reid.models.perspective`. Pixel centres are at integers; pixel (row, column) of the result has
    its centre at u = (column + 0.5) / width, v = (row + 0.5) / height of the unit square. Points outside the image have
    the colour of its border.

    Args:
        image: (h, w, 3) uint8 RGB.
        keypoints: (20, 3) x, y in pixels of `image` and visibility.
        plane: Which one.
        config: Size and limits.

    Returns:
        (height, width, 3) uint8 RGB; None: the keypoints do not show the plane.
    """
    planes = _find_plane(keypoints, image.shape[0], image.shape[1], plane, config.planes)
    return None if planes is None else _warp(image, planes, config)


def _find_plane(
    keypoints: NDArray[np.float32], height: int, width: int, plane: PlaneName, config: PlaneConfig
) -> Planes | None:
    """The planes of one image with `plane` alone visible; None: it is not."""
    only = config.model_copy(update={"planes": (plane,)})
    planes = find_planes(torch.from_numpy(keypoints[None].copy()), height, width, only)
    return planes if bool(planes.visible[0, PLANE_NAMES.index(plane)]) else None


def _warp(image: NDArray[np.uint8], planes: Planes, config: PlaneImageConfig) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    samples = _samples_per_side(planes, config)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    warped, _, _ = warp_planes(pixels, planes, height, width, config.height * samples, config.width * samples)
    if samples > 1:
        warped = F.avg_pool2d(warped, samples)
    rounded: NDArray[np.uint8] = warped[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return rounded


def _samples_per_side(planes: Planes, config: PlaneImageConfig) -> int:
    """Samples of a pixel along each side: so many that they are about a pixel of the image apart, or closer."""
    square = np.array([(0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 1.0)])
    lifted = square @ planes.homographies[planes.visible][0].numpy().T  # (4, 3)
    corners = lifted[:, :2] / lifted[:, 2:]
    top, right, bottom, left = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    needed = float(max(top / config.width, bottom / config.width, left / config.height, right / config.height))
    return min(config.max_samples, max(1, math.ceil(needed)))


def make_plane_set(
    source: str | Path,
    target: str | Path,
    plane: PlaneName,
    config: PlaneImageConfig | None = None,
    *,
    run_tasks: RunTasks = run_in_this_process,
    overwrite: bool = False,
    progress: Callable[[int, int, ShardResult], None] | None = None,
) -> Manifest:
    """Writes the set of one plane's images into the folder `target` and returns its manifest.

    A second call with the same source, settings and libraries finds the finished set and does nothing; after an
    interruption it keeps the shards that were finished. The manifest's one addition says what was made of what, and how
    many images were left out.

    Args:
        source: Folder of a set with keypoints: local path, `s3://`, `gs://`, `http(s)://`.
        target: The folder to make: local path, `s3://`, `gs://`.
        plane: front, back, side or top.
        config: Size and limits.
        run_tasks: Who writes the shards; the result does not depend on it.
        overwrite: Replace another set that is at `target`.
        progress: Called with (shards done, shards, result) after each shard.

    Raises:
        NoPlaneError: no image shows the plane.
        DataError: the source is no shard set, or damaged.
        ValueError: the target is the source or inside it, or holds something else.
    """
    where, to = storage.open_location(source), storage.open_location(target)
    if f"{to.uri.rstrip('/')}/".startswith(f"{where.uri.rstrip('/')}/"):
        raise ValueError(f"the target {to.uri} is the source or inside it: choose a folder beside {where.uri}")
    config = config or PlaneImageConfig()
    try:
        with open_shards(where) as shards:
            manifest, index = shards.manifest, shards.index
    except (ValueError, OSError) as error:
        raise DataError(f"{where.uri}: {error}") from error
    provenance = config.provenance(plane)
    tasks = plan_tasks(where.uri, manifest, index, provenance)
    digest = hashlib.sha256("\n".join(["plane set", manifest.hash, *(task.digest for task in tasks)]).encode())

    def write(staging: Location) -> tuple[Manifest, bytes]:
        logger.info("%s of %s: %d images in %d shards", provenance.name, manifest.name, len(index), len(tasks))
        results: list[ShardResult] = []
        for result in run_tasks(tasks, staging, partial(write_plane_shard, plane=plane, config=config)):
            results.append(result)
            if progress is not None:
                progress(len(results), len(tasks), result)
        try:
            return _join_results(manifest, plane, provenance, tasks, results, digest.hexdigest())
        except NoPlaneError:
            if staging.is_local:
                storage.delete_tree(staging)  # nobody will ask for these empty shards again
            raise

    return build_set(to, name=_name_of(manifest, plane), digest=digest.hexdigest(), write=write, overwrite=overwrite)


def _name_of(source: Manifest, plane: PlaneName) -> str:
    return f"{source.name}-{plane}"


def write_plane_shard(task: EnrichTask, folder: Location, plane: PlaneName, config: PlaneImageConfig) -> ShardResult:
    """Writes the plane images of one shard and its part file into the staging folder; keeps both if they are there.

    Raises:
        DataError: the source's shard is missing, damaged, or not what its index says.
    """
    return stage_shard(
        task.info.name, task.number, task.digest, folder, lambda path: _write_tar(task, path, plane, config)
    )


def _write_tar(task: EnrichTask, path: Path, plane: PlaneName, config: PlaneImageConfig) -> ShardResult:
    rows: list[IndexRow] = []
    skipped: list[SkippedSample] = []
    left_out: Counter[str] = Counter()
    content = source_content(task, path)
    members = members_of(task, content)
    with open(path, "xb") as file:
        tar = TarWriter(file)
        for number in range(len(task.rows)):
            row = task.rows.row(number)
            if row.keypoints is None:
                left_out[NOT_ANNOTATED] += 1
                continue
            planes = _find_plane(row.keypoints, row.height, row.width, plane, config.planes)
            if planes is None:
                left_out[NOT_SHOWN] += 1
                continue
            try:
                image = decode_image(content[row.image_offset : row.image_offset + row.image_size])
            except UnreadableImageError as error:
                logger.warning("skipped %s image %s: %s", row.split, row.key, error)
                skipped.append(SkippedSample(split=row.split, key=row.key, reason=error.reason))
                continue
            about = members[row.key]["json"]
            metadata = bytes(content[about.offset : about.offset + about.size])
            rows.append(_add_sample(tar, row, metadata, _warp(image, planes, config), config.jpeg_quality))
        tar.finish()
        size, sha256 = tar.position, tar.digest.hexdigest()
    return ShardResult(
        info=task.info.model_copy(update={"size": size, "sha256": sha256, "count": len(rows)}),
        index=index_from_rows(rows),
        skipped=tuple(skipped),
        counts=dict(sorted(left_out.items())),
    )


def _add_sample(tar: TarWriter, row: IndexRow, metadata: bytes, image: NDArray[np.uint8], quality: int) -> IndexRow:
    """Appends a plane image and its metadata; what belongs to the pixels of the whole image is dropped."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, f"OpenCV cannot encode {image.shape} {image.dtype}"
    height, width = image.shape[:2]
    about = json.loads(metadata) | {"width": width, "height": height, "keypoints": None}
    about = {name: value for name, value in about.items() if name not in ("keypoint_scores", "flags")}
    offset = tar.add(f"{row.key}.jpg", bytes(data))
    tar.add(f"{row.key}.json", json.dumps(about, sort_keys=True, allow_nan=False).encode())
    return replace(
        row, image_offset=offset, image_size=len(data), width=width, height=height,
        mask_offset=-1, mask_size=-1, keypoints=None, keypoint_scores=None, boxes=None, flags=(),
    )  # fmt: skip


def _join_results(
    source: Manifest,
    plane: PlaneName,
    provenance: Provenance,
    tasks: Sequence[EnrichTask],
    results: Sequence[ShardResult],
    digest: str,
) -> tuple[Manifest, bytes]:
    """The manifest of a plane's set, and the bytes of its index."""
    ordered = in_plan_order([task.info.name for task in tasks], results)
    skipped = sorted((s for result in ordered for s in result.skipped), key=lambda s: (s.split, s.key))
    left_out: Counter[str] = Counter()
    for result in ordered:
        left_out.update(result.counts)
    index, data, info = join_indexes(ordered)
    if len(index) == 0:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        raise NoPlaneError(
            f"none of the {source.num_images} images of {source.name} shows the {plane} ({found}): add keypoints"
            " (jobs/add_keypoints.py), or do without that plane"
        )
    labels, _ = training_labels(index.split, index.vehicle_id)
    counts = {split: int(np.count_nonzero(index.split == split)) for split in source.counts}
    unread: Counter[str] = Counter(sample.split for sample in skipped)
    addition = Addition(
        **provenance.model_dump(), source_hash=source.hash, members={IMAGE: len(index)},
        problems=dict(sorted(left_out.items())), means={},
    )  # fmt: skip
    manifest = Manifest(
        schema_version=ENRICHED_SCHEMA,
        name=_name_of(source, plane),
        source_counts={split: count + unread[split] for split, count in counts.items()},
        counts=counts,
        identities={split: len(set(index.vehicle_id[index.split == split].tolist())) for split in counts},
        skipped=dict(sorted(Counter(sample.reason for sample in skipped).items())),
        skipped_samples=tuple(skipped),
        repairs={},
        labels=labels,
        num_classes=len(labels),
        shards=tuple(result.info for result in ordered),
        index=info,
        packing=source.packing,
        source=source.source,
        additions=(*source.additions, addition),
        plan_digest=digest,
    ).sealed()
    return manifest, data


def rows_in_source(source: Index, planes: Index) -> NDArray[np.int64]:
    """(M,) the row in the source's index of each image of a plane's set.

    Raises:
        ValueError: An image is not in the source: the set was made of another one.
    """
    row_of = {name: row for row, name in enumerate(zip(source.split.tolist(), source.key.tolist(), strict=True))}
    names = list(zip(planes.split.tolist(), planes.key.tolist(), strict=True))
    strange = [name for name in names if name not in row_of]
    if strange:
        raise ValueError(f"{len(strange)} plane images are of another data set, the first is {'/'.join(strange[0])}")
    return np.array([row_of[name] for name in names], dtype=np.int64)
