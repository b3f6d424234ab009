"""One shard of an enriched set: the members of the source's shard, with those that an enrichment adds or replaces."""

from __future__ import annotations

import json
import math
import mmap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reid import storage
from reid.contracts import DataError
from reid.data.additions import BOX_MAKERS, BOXES, IMAGE, KEYPOINTS, MASK, MASK_MAKERS, Additions, Enrichment, Sample
from reid.data.image_header import image_format, image_size
from reid.data.index import Index, IndexRow, index_from_rows
from reid.data.manifest import ShardInfo
from reid.data.staging import ShardResult, stage_shard
from reid.data.tar import Member, TarWriter, collect_samples, image_of
from reid.keypoints import NUM_KEYPOINTS
from reid.storage import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrichTask:
    """One shard to write anew."""

    number: int
    """Position in the set."""
    info: ShardInfo
    """Of the source's shard."""
    source: str
    """Address of the source's folder."""
    rows: Index
    """The images of the shard."""
    digest: str
    """Of the source's shard and the provenance: a finished shard of the same digest is kept."""


def enrich_shard(task: EnrichTask, folder: Location, enrichment: Enrichment) -> ShardResult:
    """Writes the enriched tar of one task and its part file into the staging folder; keeps both if they are there.

    Raises:
        DataError: the source's shard is missing, damaged, or not what its index says.
    """
    return stage_shard(
        task.info.name, task.number, task.digest, folder, lambda path: _write_tar(task, path, enrichment)
    )


def _write_tar(task: EnrichTask, path: Path, enrichment: Enrichment) -> ShardResult:
    name = enrichment.provenance.name
    rows: list[IndexRow] = []
    problems: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    measured: dict[str, list[float]] = {}
    content = source_content(task, path)
    members = members_of(task, content)
    samples = (_sample_of(task.rows.row(number), content) for number in range(len(task.rows)))
    with open(path, "xb") as file:
        tar = TarWriter(file)
        for number, added in zip(range(len(task.rows)), enrichment(samples), strict=True):
            source = task.rows.row(number)
            row = _write_sample(tar, source, _flagged(source, name, added), added, members[source.key], content)
            rows.append(row)
            problems.update([added.problem] if added.problem else [])
            given = {MASK: added.mask, KEYPOINTS: added.keypoints, BOXES: added.boxes, IMAGE: added.image}
            counts.update(kind for kind, value in given.items() if value is not None)
            for measure, value in added.measures.items():
                measured.setdefault(measure, []).append(float(value))
        tar.finish()
        size, sha256 = tar.position, tar.digest.hexdigest()
    return ShardResult(
        info=task.info.model_copy(update={"size": size, "sha256": sha256}),
        index=index_from_rows(rows),
        repairs=dict(sorted(problems.items())),
        counts=dict(sorted((counts + Counter({name: len(values) for name, values in measured.items()})).items())),
        sums={measure: math.fsum(values) for measure, values in sorted(measured.items())},
    )


def source_content(task: EnrichTask, path: Path) -> memoryview:
    """The bytes of the source's shard, mapped, after its hash was compared; a remote one is copied beside `path`.

    Raises:
        DataError: it is missing or damaged.
    """
    location = storage.open_location(task.source).child(task.info.name)
    try:
        if location.is_local:
            local, sha256 = location.local_path, storage.sha256_of(location)
        else:
            local = path.with_name(f"source-{path.name}")
            _, sha256 = storage.copy_to_local(location, local)
    except FileNotFoundError:
        raise DataError(f"{location.uri} is missing: copy or pack the set again") from None
    if sha256 != task.info.sha256:
        raise DataError(f"{location.uri} is damaged (sha256 differs): copy or pack the set again")
    with open(local, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def members_of(task: EnrichTask, content: memoryview) -> dict[str, dict[str, Member]]:
    """Key -> ending -> member, of a shard that holds nothing but what its index says.

    Raises:
        DataError: it holds something else.
    """
    problems: list[str] = []
    samples = collect_samples(content, lambda kind, detail: problems.append(f"{kind}: {detail}"))
    for number in range(len(task.rows)):
        row = task.rows.row(number)
        parts = samples.get(row.key, {})
        image = image_of(parts)
        if image is None or "json" not in parts or (image.offset, image.size) != (row.image_offset, row.image_size):
            problems.append(f"bad_offset: {row.key!r} is not where the index says")
    if len(samples) != len(task.rows):
        problems.append(f"wrong_count: {len(samples)} samples, the index has {len(task.rows)}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DataError(f"{task.source}/{task.info.name}: {'; '.join(problems[:3])}{more}; see jobs/verify_shards.py")
    return samples


def _sample_of(row: IndexRow, content: memoryview) -> Sample:
    mask = None if row.mask_offset < 0 else content[row.mask_offset : row.mask_offset + row.mask_size]
    return Sample(
        key=row.key,
        split=row.split,
        image=content[row.image_offset : row.image_offset + row.image_size],
        width=row.width,
        height=row.height,
        mask=mask,
        keypoints=row.keypoints,
    )


def _flagged(row: IndexRow, name: str, added: Additions) -> IndexRow:
    """The row with what was added; flags of the same enrichment and of what was replaced go."""
    if added.image is not None:
        assert image_format(added.image) == "png", f"{row.key}: an image that is no PNG"
        assert image_size(added.image) == (row.width, row.height), f"{row.key}: an image of another size than before"
    if added.mask is not None:
        assert image_size(added.mask) == (row.width, row.height), f"{row.key}: a mask of another size than the image"
    # What flagged the replaced mask says nothing about the new one.
    outdated = {
        name,
        *(MASK_MAKERS if added.mask is not None else ()),
        *(BOX_MAKERS if added.boxes is not None else ()),
    }
    others = tuple(flag for flag in row.flags if flag.partition(":")[0] not in outdated)
    changes: dict[str, Any] = {"flags": (*others, f"{name}:{added.problem}") if added.problem else others}
    if added.keypoints is not None:
        scores = added.keypoint_scores
        assert added.keypoints.shape == (NUM_KEYPOINTS, 3), f"{row.key}: keypoints of shape {added.keypoints.shape}"
        assert scores is None or scores.shape == (NUM_KEYPOINTS,), f"{row.key}: scores of another shape"
        changes |= {"keypoints": added.keypoints, "keypoint_scores": scores}
    if added.boxes is not None:
        assert added.boxes.shape == (len(added.boxes), 4), f"{row.key}: boxes of shape {added.boxes.shape}"
        changes["boxes"] = added.boxes
    return replace(row, **changes)


def _write_sample(
    tar: TarWriter,
    source: IndexRow,
    row: IndexRow,
    added: Additions,
    members: Mapping[str, Member],
    content: memoryview,
) -> IndexRow:
    """Appends the members of a sample, the new ones in the place of the old, and returns the row of the new index."""

    def data_of(ending: str) -> bytes | memoryview | None:
        member = members.get(ending)
        return None if member is None else content[member.offset : member.offset + member.size]

    image = image_of(dict(members))
    metadata = data_of("json")
    assert image is not None, "checked in members_of"
    assert metadata is not None, "checked in members_of"
    if row.flags != source.flags or added.keypoints is not None:
        metadata = _changed_metadata(bytes(metadata), row)
    mask = added.mask if added.mask is not None else data_of(MASK)
    boxes = data_of(BOXES) if added.boxes is None else json.dumps(added.boxes.tolist()).encode()
    image_name, image_data = image.name, content[image.offset : image.offset + image.size]
    if added.image is not None:
        image_name, image_data = f"{row.key}.png", memoryview(added.image)
    image_offset = tar.add(image_name, image_data)
    tar.add(f"{row.key}.json", metadata)
    mask_offset = -1 if mask is None else tar.add(f"{row.key}.{MASK}", mask)
    if boxes is not None:
        tar.add(f"{row.key}.{BOXES}", boxes)
    mask_size = -1 if mask is None else len(mask)
    return replace(
        row, image_offset=image_offset, image_size=len(image_data), mask_offset=mask_offset, mask_size=mask_size
    )


def _changed_metadata(data: bytes, row: IndexRow) -> bytes:
    """The JSON member of a sample with keypoints and flags as in its row."""
    metadata: dict[str, Any] = json.loads(data)
    metadata["keypoints"] = None if row.keypoints is None else row.keypoints.tolist()
    changes = {
        "keypoint_scores": None if row.keypoint_scores is None else row.keypoint_scores.tolist(),
        "flags": list(row.flags) or None,
    }
    for name, value in changes.items():
        metadata.pop(name, None)
        if value is not None:
            metadata[name] = value
    return json.dumps(metadata, sort_keys=True, allow_nan=False).encode()
