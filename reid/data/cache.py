"""A bounded folder on the local disk for shards that live elsewhere, shared by all processes of a machine.

Entries are named by their SHA-256, so two sets that share a shard share the entry, and an entry cannot be the wrong
content under the right name. A file lock per entry lets one process fetch while others wait for it. An entry is open,
under a shared lock, only while bytes are read from it, and never mapped: so any number of processes keeps no more on
the disk than the limit allows, and the space that eviction reports as freed is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from pydantic import Field

from reid import storage
from reid.contracts import DataError, Settings
from reid.data.manifest import ShardInfo
from reid.storage import Location, RetryCounter, RetryPolicy

logger = logging.getLogger(__name__)

_ENTRY_SUFFIX: Final = ".tar"
_TEMPORARY_PREFIX: Final = ".tmp-"
_POLL_SECONDS: Final = 0.05
"""Pause between two looks for room."""
_HARDLY_READ_SECONDS: Final = 10.0
"""A shard that has to go so soon after its last use will very likely be fetched again."""


class CacheConfig(Settings):
    """The local cache for remote shards; local shards never use it."""

    folder: str = ""
    """Folder on a local disk; empty: `vehicle-reid/shards` in the user's cache folder."""
    max_bytes: int = Field(100_000_000_000, gt=0)
    """Limit for all entries together, of all processes of the machine; the least recently used go first. Reading is
    fast while it holds the shards that are read at the same time: about one for each identity of the global batch."""
    attempts: int = Field(6, gt=0)
    """Tries per request and per shard that arrives damaged."""
    wait_seconds: float = Field(0.5, ge=0)
    """Longest first wait between tries; doubles each time up to a minute, drawn at random below that."""

    def policy(self) -> RetryPolicy:
        """The same as storage takes it."""
        return RetryPolicy(attempts=self.attempts, base_seconds=self.wait_seconds)


@dataclass
class ShardCache:
    """Fetches shards by their hash and keeps the folder within its limit. Thread-safe; processes share the folder."""

    config: CacheConfig
    counts: Counter[str] = field(default_factory=Counter)
    """hits (reads from an entry), fetched, fetched_bytes, corrupted (refetched), evicted."""
    retries: RetryCounter = field(default_factory=RetryCounter)
    patience_seconds: float = 60.0
    """How long a download waits for the room that downloads of other processes take before it exceeds the limit."""
    _verified: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Entry -> (inode, size, change time) that this process has hashed."""
    _too_small: bool = False
    """Whether it was said that the limit is below what is read at the same time."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @functools.cached_property
    def folder(self) -> Path:
        """Where the entries are."""
        if self.config.folder:
            return Path(self.config.folder).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "vehicle-reid" / "shards"

    def read(self, info: ShardInfo, remote: Location, offset: int, size: int) -> bytes:
        """`size` bytes of a shard from `offset` on; the shard is fetched when it is not here, checked against its hash.

        Raises:
            DataError: the shard arrived damaged every time, or ends before these bytes.
            ValueError: it is larger than the cache.
            OSError: the transfer failed for good.
        """
        with self._open(info, remote) as file:
            content = os.pread(file.fileno(), size, offset)
        if len(content) != size:
            raise DataError(
                f"{remote.uri} has {info.size} bytes, the index says {size} at {offset}: pack the set again"
            )
        return content

    def _open(self, info: ShardInfo, remote: Location) -> BinaryIO:
        """The open entry of a shard, whole, under a shared lock that keeps it from being evicted until it is closed."""
        entry = self.folder / (info.sha256 + _ENTRY_SUFFIX)
        file = self._open_verified(entry, info)
        if file is not None:
            self._count("hits")
            return file
        if info.size > self.config.max_bytes:
            raise ValueError(
                f"{remote.uri} has {info.size} bytes, the cache only {self.config.max_bytes}: raise cache.max_bytes"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._exclusive(info.sha256 + ".lock"):
            for _ in range(self.config.attempts):
                # Another process may have fetched it meanwhile.
                file = self._open_verified(entry, info) or self._fetch(info, remote, entry)
                if file is not None:
                    return file
        raise DataError(f"{remote.uri} is damaged each time it lies in {self.folder}: is that disk full or broken?")

    def num_bytes(self) -> int:
        """Bytes that the entries and the running downloads occupy."""
        return sum(size for _, _, size in self._entries())

    def _open_verified(self, entry: Path, info: ShardInfo) -> BinaryIO | None:
        """The locked entry; None when it is missing or damaged (then it is deleted)."""
        try:
            file = open(entry, "rb")  # noqa: SIM115 - handed to the caller
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            status = os.fstat(file.fileno())
            if status.st_nlink == 0:  # evicted between open and lock
                file.close()
                return None
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if status.st_size == info.size and (
                self._verified.get(info.sha256) == stamp or storage.sha256_of(entry) == info.sha256
            ):
                with contextlib.suppress(OSError):
                    os.utime(file.fileno(), ns=(time.time_ns(), status.st_mtime_ns))  # access time: recently used
                with self._lock:
                    self._verified[info.sha256] = stamp
                return file
        except BaseException:
            file.close()
            raise
        logger.warning("cached shard %s was damaged; fetching it again", info.name)
        self._count("corrupted")
        entry.unlink(missing_ok=True)
        file.close()
        return None

    def _fetch(self, info: ShardInfo, remote: Location, entry: Path) -> BinaryIO | None:
        """The locked entry after a download; None when what lies on the disk is not what arrived."""
        with self._reserved(info.size) as temporary:
            path = Path(temporary.name)

            def download() -> None:
                size, sha256 = storage.copy_to_local(remote, path, RetryPolicy(attempts=1))
                if (size, sha256) != (info.size, info.sha256):
                    self._count("corrupted")
                    raise DamagedTransferError(
                        f"{remote.uri} arrived with {size} bytes and sha256 {sha256[:16]}..., the manifest says"
                        f" {info.size} bytes and {info.sha256[:16]}...: the stored shard is damaged, or another set was"
                        " written there"
                    )

            try:
                storage.retry("download", remote.uri, download, self.config.policy(), self.retries)
            except DamagedTransferError as error:
                raise DataError(str(error)) from error
            with self._exclusive("cache.lock"):  # whoever makes room counts it once: as a download or as an entry
                os.replace(path, entry)
            self._count("fetched")
            self._count("fetched_bytes", info.size)
            fcntl.flock(temporary, fcntl.LOCK_SH)  # nobody evicts the entry before it was read
            return self._open_verified(entry, info)

    @contextlib.contextmanager
    def _reserved(self, size: int) -> Iterator[BinaryIO]:
        """A file to download to, whose name reserves its size and whose lock says that its process lives."""
        temporary = self.folder / f"{_TEMPORARY_PREFIX}{size}-{uuid.uuid4().hex}"
        file = self._reserve(temporary, size)
        try:
            yield file
        finally:
            temporary.unlink(missing_ok=True)
            file.close()

    def _reserve(self, temporary: Path, size: int) -> BinaryIO:
        """The locked file, made once its size fits within the limit, or nobody makes room for it."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            with self._exclusive("cache.lock"):
                used = self._make_room(size)
                fits = used + size <= self.config.max_bytes
                if fits or time.monotonic() >= deadline:
                    file = open(temporary, "xb")  # noqa: SIM115 - handed to the caller
                    fcntl.flock(file, fcntl.LOCK_EX)
                    break
            time.sleep(_POLL_SECONDS)
        if not fits:
            logger.warning(
                "the shard cache %s takes %d bytes, its limit is %d: other processes have kept %d bytes busy for"
                " %.0f s; raise cache.max_bytes",
                self.folder, used + size, self.config.max_bytes, used, self.patience_seconds,
            )  # fmt: skip
        return file

    def _make_room(self, needed: int) -> int:
        """Deletes the least recently used entries that nobody reads, until `needed` bytes fit; the bytes that are left.

        Downloads of dead processes go like entries.
        """
        entries = sorted(self._entries())
        used = sum(size for _, _, size in entries)
        for last_use, path, size in entries:
            if used + needed <= self.config.max_bytes:
                break
            if self._evict(path):
                used -= size
                self._say_when_too_small(path, time.time() - last_use / 1e9)
        return used

    def _say_when_too_small(self, path: Path, seconds: float) -> None:
        if seconds < _HARDLY_READ_SECONDS and path.suffix == _ENTRY_SUFFIX and not self._too_small:
            self._too_small = True
            logger.warning(
                "the shard cache %s had to delete a shard %.1f s after it was read: %d bytes do not hold the shards"
                " that are read at the same time, and they are fetched again and again; raise cache.max_bytes",
                self.folder, seconds, self.config.max_bytes,
            )  # fmt: skip

    def _evict(self, path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except (FileNotFoundError, BlockingIOError):
            return False
        self._count("evicted")
        return True

    def _entries(self) -> list[tuple[int, Path, int]]:
        """(last use in ns, file, bytes) of finished entries and of downloads under way."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as scan:
            for item in scan:
                if item.name.endswith(_ENTRY_SUFFIX) or item.name.startswith(_TEMPORARY_PREFIX):
                    with contextlib.suppress(FileNotFoundError):
                        status = item.stat()
                        reserved = item.name.startswith(_TEMPORARY_PREFIX)
                        size = int(item.name.split("-")[1]) if reserved else status.st_size
                        found.append((max(status.st_atime_ns, status.st_mtime_ns), Path(item.path), size))
        return found

    @contextlib.contextmanager
    def _exclusive(self, name: str) -> Iterator[None]:
        """One process and thread at a time; released by the system when its holder dies."""
        with open(self.folder / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _count(self, kind: str, amount: int = 1) -> None:
        with self._lock:
            self.counts[kind] += amount


class DamagedTransferError(ConnectionError):
    """Bytes that are not those of the manifest: worth another try, because most of them are broken transfers."""
