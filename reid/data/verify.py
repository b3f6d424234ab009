"""Checks a shard set against its manifest and its index, byte by byte, and names everything that is wrong.

WebDataset reads damaged tars without a word: it drops the rest of a shard after a bad header, lets a repeated key pass,
and its default decoders execute pickled members. So hashes are compared first, and then each tar is walked by a strict
reader that knows only what packing writes; whatever else is there is a problem and is never opened.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid import storage
from reid.data.decode import UnreadableImageError, decode_image, decode_mask
from reid.data.index import Index, index_from_parquet
from reid.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, manifest_from_json
from reid.data.shard_set import ShardSet
from reid.data.tar import IMAGE_ENDINGS, Member, Note, collect_samples, image_of
from reid.storage import Location


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    file: str
    """Name inside the set's folder."""
    kind: str
    """missing_file, wrong_size, wrong_hash, bad_manifest, bad_index, bad_tar, unsafe_member, bad_name, duplicate_key,
    missing_part, bad_metadata, bad_image, bad_offset or wrong_count."""
    detail: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a check of a whole set found."""

    uri: str
    problems: tuple[Problem, ...]
    num_shards: int
    num_images: int
    """Images found in the tars."""
    num_bytes: int
    """Bytes of the tars that were read."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def counts(self) -> Counter[str]:
        """Problems by kind."""
        return Counter(problem.kind for problem in self.problems)


def verify_shards(
    shards: ShardSet | Location | str | Path,
    *,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Reads every byte of a set and tells what is wrong; finds each flipped bit, since every file has a SHA-256.

    Never raises for a bad set: a folder without a manifest is a report with one problem. Remote shards are read from
    where they are, not from the cache.

    Args:
        shards: The set, or the address of its folder.
        decode: Also decode every image and mask.
        progress: Called with (shards done, shards).
    """
    location = storage.open_location(shards.uri) if isinstance(shards, ShardSet) else _location_of(shards)
    problems: list[Problem] = []
    entry = location.child(MANIFEST_NAME)
    try:
        manifest = manifest_from_json(storage.read_bytes(entry), entry.uri)
    except FileNotFoundError:
        problem = Problem(MANIFEST_NAME, "missing_file", "no manifest: packing did not finish, or a wrong address")
        return VerifyReport(location.uri, (problem,), 0, 0, 0)
    except ValueError as error:
        return VerifyReport(location.uri, (Problem(MANIFEST_NAME, "bad_manifest", str(error)),), 0, 0, 0)
    index = _verify_index(manifest, location, problems)
    num_images = num_bytes = 0
    for number, info in enumerate(manifest.shards):
        with _local_copy(location.child(info.name), problems, info) as path:
            if path is not None:
                rows = None if index is None else np.flatnonzero(index.shard == number)
                num_bytes += path.stat().st_size
                num_images += _verify_shard(path, info, index, rows, decode, problems)
        if progress is not None:
            progress(number + 1, len(manifest.shards))
    return VerifyReport(location.uri, tuple(problems), len(manifest.shards), num_images, num_bytes)


def _location_of(shards: Location | str | Path) -> Location:
    return shards if isinstance(shards, Location) else storage.open_location(shards)


def _verify_index(manifest: Manifest, location: Location, problems: list[Problem]) -> Index | None:
    info = manifest.index
    try:
        data = storage.read_bytes(location.child(info.name))
    except FileNotFoundError:
        problems.append(Problem(info.name, "missing_file", "no index"))
        return None
    if storage.sha256_of(data) != info.sha256:
        problems.append(Problem(info.name, "wrong_hash", f"sha256 is not the manifest's {info.sha256[:16]}..."))
    try:
        index, _ = index_from_parquet(data, info.name)
    except ValueError as error:
        problems.append(Problem(info.name, "bad_index", str(error)))
        return None
    if index.content_sha256() != info.content_sha256:
        problems.append(Problem(info.name, "bad_index", "the columns' values are not what the manifest hashed"))
    found = {split: int(count) for split, count in Counter(index.split.tolist()).items()}
    if found != {split: count for split, count in manifest.counts.items() if count}:
        problems.append(Problem(info.name, "wrong_count", f"index has {found} images, manifest {manifest.counts}"))
    skipped = len(manifest.skipped_samples)
    if sum(manifest.source_counts.values()) != manifest.num_images + skipped:
        source = sum(manifest.source_counts.values())
        detail = f"{source} source images are not {manifest.num_images} packed + {skipped} skipped"
        problems.append(Problem(MANIFEST_NAME, "wrong_count", detail))
    for (split, key), count in Counter(zip(index.split.tolist(), index.key.tolist(), strict=True)).items():
        if count > 1:
            problems.append(Problem(info.name, "duplicate_key", f"{key!r} is there {count} times in split {split}"))
    return index


@contextlib.contextmanager
def _local_copy(location: Location, problems: list[Problem], info: ShardInfo) -> Iterator[Path | None]:
    """The shard as a local file; None, with the problem noted, when it is missing."""
    with contextlib.ExitStack() as stack:
        path: Path | None
        if location.is_local:
            path = location.local_path if location.local_path.is_file() else None
        else:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / info.name
            try:
                storage.copy_to_local(location, path)
            except FileNotFoundError:
                path = None
        if path is None:
            problems.append(Problem(info.name, "missing_file", f"no such file in {location.uri}"))
        yield path


def _verify_shard(
    path: Path, info: ShardInfo, index: Index | None, rows: Any, decode: bool, problems: list[Problem]
) -> int:
    """Notes what is wrong with one tar and returns its number of images."""

    def note(kind: str, detail: str) -> None:
        problems.append(Problem(info.name, kind, detail))

    size = path.stat().st_size
    if size != info.size:
        note("wrong_size", f"{size} bytes, manifest {info.size}")
    if storage.sha256_of(path) != info.sha256:
        note("wrong_hash", f"sha256 is not the manifest's {info.sha256[:16]}...")
    if size == 0:
        note("bad_tar", "empty file")
        return 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        samples = collect_samples(content, note)
        for key, parts in samples.items():
            _verify_sample(key, parts, content, decode, note)
        images = {key: image for key, parts in samples.items() if (image := image_of(parts)) is not None}
        if len(images) != info.count:
            note("wrong_count", f"{len(images)} images, manifest {info.count}")
        if index is not None:
            _verify_offsets(samples, images, index, rows, content, note)
    return len(images)


def _verify_sample(key: str, parts: dict[str, Member], content: Any, decode: bool, note: Note) -> None:
    image = image_of(parts)
    if image is None or "json" not in parts:
        note("missing_part", f"sample {key!r} has only {', '.join(sorted(parts))}")
        return
    if sum(ending in parts for ending in IMAGE_ENDINGS) > 1:
        note("duplicate_key", f"sample {key!r} has more than one image: {', '.join(sorted(parts))}")
    if decode:
        try:
            decode_image(_data(content, image))
            if "mask.png" in parts:
                decode_mask(_data(content, parts["mask.png"]))
        except UnreadableImageError as error:
            note("bad_image", f"sample {key!r}: {error}")


def _verify_offsets(
    samples: dict[str, dict[str, Member]],
    images: dict[str, Member],
    index: Index,
    rows: Any,
    content: Any,
    note: Note,
) -> None:
    """Every image has its row in the index, and the row says where it lies and what its JSON says."""
    keys = [str(index.key[row]) for row in rows]
    for key in sorted(images.keys() - set(keys)):
        note("wrong_count", f"image {key!r} is not in the index")
    for row, key in zip(rows, keys, strict=True):
        if key not in images:
            note("wrong_count", f"image {key!r} of the index is not in the tar")
            continue
        mask = samples[key].get("mask.png", Member("", "file", -1, -1))
        expected = (index.image_offset[row], index.image_size[row], index.mask_offset[row], index.mask_size[row])
        actual = (images[key].offset, images[key].size, mask.offset, mask.size)
        if actual != expected:
            found = tuple(map(int, expected))
            note("bad_offset", f"image and mask of {key!r} are at {actual} (offset, size), the index says {found}")
        if "json" in samples[key]:
            _verify_metadata(key, _data(content, samples[key]["json"]), str(index.vehicle_id[row]), note)


def _verify_metadata(key: str, data: bytes, vehicle_id: str, note: Note) -> None:
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError) as error:
        note("bad_metadata", f"json of {key!r}: {error}")
        return
    if not isinstance(metadata, dict) or metadata.get("vehicle_id") != vehicle_id:
        found = metadata.get("vehicle_id") if isinstance(metadata, dict) else type(metadata).__name__
        note("bad_metadata", f"json of {key!r} names vehicle {found!r}, the index {vehicle_id!r}")


def _data(content: Any, member: Member) -> bytes:
    return bytes(content[member.offset : member.offset + member.size])
