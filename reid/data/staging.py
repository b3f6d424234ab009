"""How a shard set comes into being: independent tasks write one shard each, and the set is visible when all are there.

Packing raw images and enriching a finished set both work so. Shards are written to a staging folder, each with a part
file that lets a later run keep it; index and manifest come last, and a local folder then gets its name by a rename. A
run that died at any point continues with the shards it has, and one that finds its finished set does nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from reid import storage
from reid.data.index import Index, concatenate_indexes, index_from_parquet, index_to_parquet
from reid.data.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    IndexInfo,
    Manifest,
    ShardInfo,
    SkippedSample,
    manifest_from_json,
    manifest_to_json,
)
from reid.storage import Location

logger = logging.getLogger(__name__)

PARTS_FOLDER: Final = ".parts"
"""Inside the staging folder: results of finished shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    """A written shard."""

    info: ShardInfo
    index: Index
    skipped: tuple[SkippedSample, ...] = ()
    repairs: dict[str, int] = field(default_factory=dict)
    """Images by what was put right, tolerated or not possible."""
    counts: dict[str, int] = field(default_factory=dict)
    """Images that were given or measured something."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of what was measured on each image, such as the share of its foreground."""
    kept: bool = False
    """Found finished from an earlier run."""


ShardWork = Callable[[Any, Location], ShardResult]
"""Writes the shard of a task into the staging folder; picklable, so that other processes can do it."""
RunTasks = Callable[[Sequence[Any], Location, ShardWork], Iterable[ShardResult]]
"""Carries out the work on tasks, in any order and anywhere, and yields each result as it comes."""


def run_in_this_process(tasks: Sequence[Any], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
    """Writes one shard after the other."""
    for task in tasks:
        yield work(task, folder)


def in_plan_order(names: Sequence[str], results: Sequence[ShardResult]) -> list[ShardResult]:
    """The results of all tasks in the order of their shards' names.

    Raises:
        ValueError: a shard has no result or two, or a result belongs to none.
    """
    by_name = {result.info.name: result for result in results}
    if len(results) != len(names) or set(by_name) != set(names):
        raise ValueError(f"got results of {len(results)} shards, the plan has {len(names)} others")
    return [by_name[name] for name in names]


def join_indexes(results: Sequence[ShardResult]) -> tuple[Index, bytes, IndexInfo]:
    """The index over all shards, the bytes of its file and what the manifest says about it."""
    index = concatenate_indexes([result.index for result in results])
    data = index_to_parquet(index)
    info = IndexInfo(
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        content_sha256=index.content_sha256(),
        rows=len(index),
    )
    return index, data, info


def stage_shard(
    name: str, number: int, digest: str, folder: Location, write: Callable[[Path], ShardResult]
) -> ShardResult:
    """Writes one shard and its part file into the staging folder; keeps both when they are there already.

    Args:
        name: File name of the tar.
        number: Position in the set.
        digest: Of all that shapes the shard: a finished one of the same digest is kept.
        folder: The staging folder.
        write: Writes the tar to the local path that it is given.
    """
    kept = _finished_result(name, number, digest, folder)
    if kept is not None:
        return kept
    parts = folder.child(PARTS_FOLDER)
    storage.make_folder(parts)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=parts.local_path if parts.is_local else None) as scratch:
        path = Path(scratch) / name
        result = write(path)
        target = folder.child(name)
        if target.is_local:
            storage.sync_file(path)
            os.replace(path, target.local_path)
            storage.sync_folder(target.local_path.parent)
        else:
            storage.upload_file(path, target)
    storage.write_bytes_atomic(_part_of(name, folder), _part_bytes(number, digest, result))
    return result


def build_set(
    target: Location,
    *,
    name: str,
    digest: str,
    write: Callable[[Location], tuple[Manifest, bytes]],
    overwrite: bool = False,
) -> Manifest:
    """The set of a plan at `target`: found there, continued, or made.

    Args:
        target: The folder to make, local or on an object store.
        name: Name of the data set.
        digest: Of the plan; the manifest says it as `plan_digest`.
        write: Writes all shards to the staging folder and returns the manifest and the bytes of the index.
        overwrite: Replace another set that is at `target`.

    Raises:
        ValueError: something else is at `target`; a shard is not where it should be.
    """
    present = _set_at(target)
    if isinstance(present, Manifest) and present.plan_digest == digest and present.name == name:
        logger.info("%s holds this data set already (%s)", target.uri, present.hash[:16])
        return present
    if isinstance(present, str):
        raise ValueError(f"{target.uri} holds {present}: choose another folder, or empty this one")
    if present is not None and not overwrite:
        raise ValueError(
            f"{target.uri} holds another shard set ({present.name}, {present.hash[:16]}):"
            " choose another folder, or ask for overwrite"
        )
    if not target.is_local and present is not None:
        storage.delete_tree(target.child(MANIFEST_NAME))
    staging = _staging_folder(digest, target)
    finished = _set_at(staging) if target.is_local else None
    if isinstance(finished, Manifest):  # the last run died just before the rename
        _move(staging, target, overwrite)
        return finished
    manifest, index = write(staging)
    _publish(manifest, index, staging, target, overwrite)
    return manifest


def _staging_folder(digest: str, target: Location) -> Location:
    """Where the shards of a plan are written before the set is visible.

    A hidden local folder beside the target, named by the plan so that a second run finds it; on object stores, which
    cannot rename, the target itself: a set without manifest is no set.
    """
    if not target.is_local:
        return target
    path = target.local_path
    return storage.open_location(path.with_name(f".tmp-{path.name}-{digest[:16]}"))


def _publish(manifest: Manifest, index: bytes, staging: Location, target: Location, overwrite: bool) -> None:
    storage.write_bytes_atomic(staging.child(INDEX_NAME), index)
    sizes = storage.list_sizes(staging)
    for shard in manifest.shards:
        if sizes.get(shard.name) != shard.size:
            raise ValueError(
                f"{staging.uri}/{shard.name} has {sizes.get(shard.name)} bytes, expected {shard.size}:"
                " the folder must be on storage that all packing processes share"
            )
    if target.is_local:
        storage.write_bytes_atomic(staging.child(MANIFEST_NAME), manifest_to_json(manifest))
        _move(staging, target, overwrite)
    else:
        storage.write_bytes_atomic(target.child(MANIFEST_NAME), manifest_to_json(manifest))
        storage.delete_tree(target.child(PARTS_FOLDER))


def _move(staging: Location, target: Location, overwrite: bool) -> None:
    storage.delete_tree(staging.child(PARTS_FOLDER))
    if overwrite and storage.exists(target.child(MANIFEST_NAME)):
        storage.delete_tree(target)
    storage.rename_into_place(staging.local_path, target.local_path)


def _set_at(target: Location) -> Manifest | str | None:
    """The shard set at a folder, a description of what else is there, or None: free."""
    names = storage.list_names(target)
    if MANIFEST_NAME in names:
        try:
            return manifest_from_json(storage.read_bytes(target.child(MANIFEST_NAME)), target.child(MANIFEST_NAME).uri)
        except ValueError as error:
            return f"a damaged shard set ({error})"
    if not names or (not target.is_local and PARTS_FOLDER in names):
        return None
    return f"{len(names)} other files"


def _part_of(name: str, folder: Location) -> Location:
    return folder.child(f"{PARTS_FOLDER}/{name}.parquet")


def _part_bytes(number: int, digest: str, result: ShardResult) -> bytes:
    about = {
        "digest": digest,
        "number": number,
        "info": result.info.model_dump(mode="json"),
        "skipped": [sample.model_dump(mode="json") for sample in result.skipped],
        "repairs": result.repairs,
        "counts": result.counts,
        "sums": result.sums,
    }
    return index_to_parquet(result.index, {"shard": json.dumps(about)})


def _finished_result(name: str, number: int, digest: str, folder: Location) -> ShardResult | None:
    """The result of an earlier run, when its tar is still what it was."""
    part, tar = _part_of(name, folder), folder.child(name)
    try:
        index, notes = index_from_parquet(storage.read_bytes(part), part.uri)
        about = json.loads(notes["shard"])
        if (about["digest"], about["number"]) != (digest, number):
            return None
        result = ShardResult(
            info=ShardInfo.model_validate(about["info"]),
            index=index,
            skipped=tuple(SkippedSample.model_validate(sample) for sample in about["skipped"]),
            repairs=about["repairs"],
            counts=about["counts"],
            sums=about["sums"],
        )
        if storage.sha256_of(tar) != result.info.sha256:
            return None
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return replace(result, kept=True)
