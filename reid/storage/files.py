"""Reading, writing and moving files at a `Location`."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from pyarrow import fs

from reid.storage.location import Location
from reid.storage.repetition import RetryCounter, RetryPolicy, retry

_CHUNK_BYTES: Final = 16 << 20
"""Also the size of a request to an object store."""


def read_bytes(location: Location, policy: RetryPolicy | None = None, counter: RetryCounter | None = None) -> bytes:
    """The whole content of a file. FileNotFoundError when there is none."""

    def read() -> bytes:
        # One request for the whole object; a stream's readall() asks for it in hundreds of small ranges.
        with location.filesystem.open_input_file(location.path) as file:
            return bytes(file.read())

    return retry("read", location.uri, read, policy, counter)


def exists(location: Location, policy: RetryPolicy | None = None, counter: RetryCounter | None = None) -> bool:
    """Whether a file or folder is there."""
    info = retry("info", location.uri, lambda: location.filesystem.get_file_info(location.path), policy, counter)
    return bool(info.type != fs.FileType.NotFound)


def list_sizes(
    location: Location, policy: RetryPolicy | None = None, counter: RetryCounter | None = None
) -> dict[str, int | None]:
    """Name -> bytes (None for a folder) of what lies directly in a folder, sorted by name; empty when it is missing."""
    selector = fs.FileSelector(location.path, allow_not_found=True)
    found = retry("list", location.uri, lambda: location.filesystem.get_file_info(selector), policy, counter)
    sizes = {info.base_name: info.size if info.type == fs.FileType.File else None for info in found}
    return dict(sorted(sizes.items()))


def list_names(location: Location, policy: RetryPolicy | None = None, counter: RetryCounter | None = None) -> list[str]:
    """Sorted names of the files and folders directly in a folder; empty when it is missing."""
    return list(list_sizes(location, policy, counter))


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _copy_stream(stream: Any, digest: _Digest, write: Callable[[bytes], object] | None) -> int:
    total = 0
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        total += len(chunk)
        if write is not None:
            write(chunk)
    return total


def sha256_of(
    content: Location | Path | bytes, policy: RetryPolicy | None = None, counter: RetryCounter | None = None
) -> str:
    """Hexadecimal SHA-256 of bytes or of a file, which is read in pieces.

    >>> sha256_of(b"")[:8]
    'e3b0c442'
    """
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if isinstance(content, Path) or content.is_local:
        with open(content if isinstance(content, Path) else content.local_path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    location = content

    def read() -> str:
        digest = hashlib.sha256()
        with location.filesystem.open_input_stream(location.path) as stream:
            _copy_stream(stream, digest, None)
        return digest.hexdigest()

    return retry("read", location.uri, read, policy, counter)


def copy_to_local(
    location: Location, target: Path, policy: RetryPolicy | None = None, counter: RetryCounter | None = None
) -> tuple[int, str]:
    """Copies a file to the local path `target` (which may already exist) and returns its size and SHA-256.

    A transfer that breaks starts again from the beginning; the caller gives `target` a temporary name and fsyncs it.
    """

    def copy() -> tuple[int, str]:
        digest = hashlib.sha256()
        with location.filesystem.open_input_stream(location.path) as stream, open(target, "wb") as file:
            size = _copy_stream(stream, digest, file.write)
        return size, digest.hexdigest()

    return retry("download", location.uri, copy, policy, counter)


def write_bytes_atomic(
    location: Location, data: bytes, policy: RetryPolicy | None = None, counter: RetryCounter | None = None
) -> None:
    """Writes a file so that a reader finds the old content, or the new, never a part. Makes missing local folders."""
    _refuse_read_only(location)
    if not location.is_local:

        def put() -> None:
            with location.filesystem.open_output_stream(location.path) as stream:
                stream.write(data)

        retry("write", location.uri, put, policy, counter)
        return
    path = location.local_path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def upload_file(
    source: Path, location: Location, policy: RetryPolicy | None = None, counter: RetryCounter | None = None
) -> None:
    """Copies a finished local file to a location, under its final name only when complete."""
    _refuse_read_only(location)
    if location.is_local:
        target = location.local_path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            shutil.copyfile(source, temporary)
            sync_file(temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
        return

    def upload() -> None:
        with open(source, "rb") as file, location.filesystem.open_output_stream(location.path) as stream:
            while chunk := file.read(_CHUNK_BYTES):
                stream.write(chunk)

    retry("write", location.uri, upload, policy, counter)


def make_folder(location: Location) -> None:
    """Makes a folder and its parents where the storage has folders."""
    _refuse_read_only(location)
    if location.is_local:
        location.local_path.mkdir(parents=True, exist_ok=True)


def delete_tree(location: Location, policy: RetryPolicy | None = None, counter: RetryCounter | None = None) -> None:
    """Deletes a file or a folder with all it holds; nothing happens when it is missing."""
    _refuse_read_only(location)
    if location.is_local:
        path = location.local_path
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return

    def delete() -> None:
        match location.filesystem.get_file_info(location.path).type:
            case fs.FileType.File:
                location.filesystem.delete_file(location.path)
            case fs.FileType.Directory:
                location.filesystem.delete_dir(location.path)

    retry("delete", location.uri, delete, policy, counter)


def rename_into_place(temporary: Path, target: Path) -> None:
    """Gives a finished local folder its final name, durably: files fsynced, renamed, parent fsynced.

    Raises:
        FileExistsError: `target` exists and is not an empty folder; `temporary` stays as it is.
    """
    for folder, _, names in os.walk(temporary):
        for name in names:
            sync_file(Path(folder) / name)
        sync_folder(Path(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(temporary, target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(f"{target} exists already: delete it or choose another name") from error
        raise
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Waits until a folder's list of names is on the disk."""
    sync_file(path)


def _refuse_read_only(location: Location) -> None:
    if location.is_read_only:
        raise ValueError(f"cannot write to {location.uri}: http and https are for reading")


def check_output_file(option: str, path: Path | None) -> None:
    """ValueError for a local file that could not be written after the work because its folder is not there."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"{option} {path}: the folder {path.parent} does not exist; make it, or name another file")
