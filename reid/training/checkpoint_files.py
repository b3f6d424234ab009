"""The files of one checkpoint: bytes with hashes, a manifest last, nothing that could be executed.

A checkpoint is a folder `step-00001234` with safetensors and JSON files and a `manifest.json` that names the size and
SHA-256 of each. On a local disk the folder is written under a temporary name, flushed to the disk and renamed; on an
object store the manifest is uploaded last. So a folder without a manifest does not exist for a reader.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

import reid
from reid.storage import (
    Location,
    delete_tree,
    exists,
    make_folder,
    read_bytes,
    rename_into_place,
    sha256_of,
    write_bytes_atomic,
)

MANIFEST_NAME: Final = "manifest.json"
PRODUCT: Final = f"vehicle-reid {reid.__version__}"
SCHEMA_VERSION: Final = 1
"""Raised by one whenever older code could misread what newer code writes."""
TEMPORARY_PREFIX: Final = ".tmp-"
_NAME: Final = re.compile(r"^step-(\d{8,})$")
_LARGEST_HEADER_BYTES: Final = 100_000_000


class CheckpointRefusedError(ValueError):
    """A sound checkpoint that must not continue this run."""


class CheckpointDamagedError(ValueError):
    """A checkpoint that cannot be trusted; `reason` is a word from a fixed set, for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that the error survives pickling between processes
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointManifest:
    """What `manifest.json` says."""

    schema: int
    """Version of the layout."""
    product: str
    """Version of the code that wrote it."""
    step: int
    """Batches consumed since the beginning of the run."""
    config_digest: str
    """Digest of the settings that must not change within a run."""
    files: Mapping[str, tuple[int, str]]
    """File name to size in bytes and SHA-256."""


def name_of_step(step: int) -> str:
    """The folder's name; it sorts by step up to a hundred million.

    >>> name_of_step(1234)
    'step-00001234'
    """
    return f"step-{step:08d}"


def step_of_name(name: str) -> int | None:
    """The step a folder's name means, None for anything else in the folder.

    >>> step_of_name("step-00001234"), step_of_name(".tmp-1234-ab")
    (1234, None)
    """
    match = _NAME.match(name)
    return int(match.group(1)) if match else None


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors in the safetensors format, from any device and memory layout."""
    plain = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    data: bytes = safetensors.torch.save(plain)
    return data


def tensors_from_bytes(data: bytes, source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    The format's readers check bounds and overlaps; a name that occurs twice, which they accept, is refused here: two
    readers could take different ones.

    Args:
        data: The whole file.
        source: What error messages call it.

    Raises:
        CheckpointDamagedError: When it is no valid safetensors file.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _LARGEST_HEADER_BYTES):
        raise CheckpointDamagedError("format", f"{source} is not a safetensors file (header of {length} bytes)")
    try:
        json.loads(data[8 : 8 + length], object_pairs_hook=_refuse_duplicates)
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointDamagedError("format", f"{source} is not a safetensors file: {error}") from error
    return tensors


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the name {key!r} occurs twice")
        found[key] = value
    return found


def json_to_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON, readable and always the same for the same content. NaN is refused."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def json_from_bytes(data: bytes, source: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointDamagedError: When it is none, or holds a key twice.
    """
    try:
        content = json.loads(data, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:  # the latter of JSON that is nested without end
        raise CheckpointDamagedError("format", f"{source} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointDamagedError("format", f"{source} holds a {type(content).__name__}, expected an object")
    return content


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-like mapping, independent of the order of its keys and of tuples against lists."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_checkpoint(
    folder: Location, name: str, files: Mapping[str, bytes], *, step: int, config_digest: str, product: str
) -> None:
    """Write a checkpoint so that it is there as a whole or not at all, replacing one of the same name.

    Args:
        folder: Where the checkpoints of the run lie.
        name: As `name_of_step` makes it.
        files: Content by name, without the manifest.
        step: For the manifest.
        config_digest: For the manifest.
        product: For the manifest.

    Raises:
        OSError: When the storage refuses; what was staged is gone then.
    """
    manifest: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "product": product,
        "step": step,
        "config_digest": config_digest,
        "files": {file: {"size": len(data), "sha256": sha256_of(data)} for file, data in files.items()},
    }
    manifest["digest"] = digest_of(manifest)
    content = {**files, MANIFEST_NAME: json_to_bytes(manifest)}  # the manifest is last
    if folder.is_local:
        _write_local(folder.local_path, name, content)
        return
    target = folder.child(name)
    delete_tree(target.child(MANIFEST_NAME))
    for file, data in content.items():
        write_bytes_atomic(target.child(file), data)


def _write_local(folder: Path, name: str, content: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f"{TEMPORARY_PREFIX}{name}-{uuid.uuid4().hex}"
    try:
        staged.mkdir()
        for file, data in content.items():
            (staged / file).write_bytes(data)
        if (folder / name).exists():  # only ever a damaged one, or one of other settings: see CheckpointStore.save
            move_aside(folder / name)
        rename_into_place(staged, folder / name)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def move_aside(path: Path) -> None:
    """Take a checkpoint out of the readers' sight in one move, then delete it."""
    doomed = path.with_name(f"{TEMPORARY_PREFIX}old-{uuid.uuid4().hex}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def remove_checkpoint(folder: Location, name: str) -> None:
    """Delete a checkpoint; at no time does a reader see a part of it as a whole."""
    if folder.is_local:
        move_aside(folder.child(name).local_path)
        return
    delete_tree(folder.child(name).child(MANIFEST_NAME))
    delete_tree(folder.child(name))


def read_manifest(checkpoint: Location) -> CheckpointManifest:
    """The manifest of a checkpoint, checked against its own digest.

    Raises:
        CheckpointDamagedError: When it is missing or not what was written.
        CheckpointRefusedError: When it is of a newer layout that cannot be read.
    """
    location = checkpoint.child(MANIFEST_NAME)
    source = f"{checkpoint.name}/{MANIFEST_NAME}"
    try:
        data = read_bytes(location)
    except FileNotFoundError as error:
        raise CheckpointDamagedError("no_manifest", f"{source} is missing: the write never finished") from error
    content = json_from_bytes(data, source)
    digest = content.pop("digest", None)
    if digest != digest_of(content):
        raise CheckpointDamagedError("manifest", f"{source} is not what was written (its digest differs)")
    try:
        return CheckpointManifest(
            schema=content["schema"],
            product=content["product"],
            step=content["step"],
            config_digest=content["config_digest"],
            files={file: (entry["size"], entry["sha256"]) for file, entry in content["files"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        refuse_newer(checkpoint.name, content.get("schema", 0), str(content.get("product", "another program")))
        raise CheckpointDamagedError("manifest", f"{source} lacks fields of its schema: {error}") from error


def refuse_newer(name: str, schema: int, product: str) -> None:
    """CheckpointRefusedError for a checkpoint whose layout this program does not know."""
    if schema > SCHEMA_VERSION:
        raise CheckpointRefusedError(
            f"{name} was written by {product} (schema {schema}), this is {PRODUCT} (schema {SCHEMA_VERSION}): update"
            " the code, or start another run"
        )


def verify_checkpoint(checkpoint: Location) -> CheckpointManifest:
    """The manifest, after every file was read and hashed.

    Raises:
        CheckpointDamagedError: Naming the first file that is not what was written, and why.
    """
    manifest = read_manifest(checkpoint)
    for file, (size, sha256) in manifest.files.items():
        location = checkpoint.child(file)
        if not exists(location):
            raise CheckpointDamagedError("file_missing", f"{checkpoint.name}/{file} is missing")
        if location.is_local and location.local_path.stat().st_size != size:
            found = location.local_path.stat().st_size
            raise CheckpointDamagedError("size", f"{checkpoint.name}/{file} has {found:,} bytes, expected {size:,}")
        if sha256_of(location) != sha256:
            raise CheckpointDamagedError(
                "sha256", f"{checkpoint.name}/{file} has changed since it was written (SHA-256)"
            )
    return manifest


def read_verified(checkpoint: Location, manifest: CheckpointManifest, files: Iterable[str]) -> dict[str, bytes]:
    """The content of some files of a checkpoint, each checked after it was read: what is hashed is what is used.

    Raises:
        CheckpointDamagedError: Naming the first file that is missing or not what was written.
    """
    content = {}
    for file in files:
        if file not in manifest.files:
            raise CheckpointDamagedError("file_missing", f"{checkpoint.name} holds no {file}: {sorted(manifest.files)}")
        try:
            data = read_bytes(checkpoint.child(file))
        except FileNotFoundError as error:
            raise CheckpointDamagedError("file_missing", f"{checkpoint.name}/{file} is missing") from error
        size, sha256 = manifest.files[file]
        if len(data) != size:
            raise CheckpointDamagedError("size", f"{checkpoint.name}/{file} has {len(data):,} bytes, expected {size:,}")
        if sha256_of(data) != sha256:
            raise CheckpointDamagedError(
                "sha256", f"{checkpoint.name}/{file} has changed since it was written (SHA-256)"
            )
        content[file] = data
    return content


def make_checkpoint_folder(folder: Location) -> None:
    """Make the folder that holds the checkpoints of a run."""
    make_folder(folder)
