"""A bounded folder on the local disk for shards that live elsewhere, shared by all processes of a machine.

Entries are named by their SHA-256, so two sets that share a shard share the entry, and an entry cannot be the wrong
content under the right name. A file lock per entry lets one process fetch while others wait for it; readers hold a
shared lock on the file they have mapped, so that the space that eviction reports as freed is free.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from reid.contracts import Settings
from reid.data.manifest import ShardInfo
from reid.storage import Location, RetryCounter, RetryPolicy

logger = logging.getLogger(__name__)

_ENTRY_SUFFIX: Final = ".tar"
_STALE_SECONDS: Final = 3600.0
"""A partial download that nobody has touched for so long belongs to a dead process."""


class CacheConfig(Settings):
    """The local cache for remote shards; local shards never use it."""

    folder: str = ""
    """Folder on a local disk; empty: `vehicle-reid/shards` in the user's cache folder."""
    max_bytes: int = Field(100_000_000_000, gt=0)
    """Limit for all entries together; the least recently used go first."""
    max_open_shards: int = Field(64, gt=0)
    """Shards that one process keeps mapped, and with that safe from eviction."""
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
    """hits, fetched, fetched_bytes, corrupted (refetched), evicted."""
    retries: RetryCounter = field(default_factory=RetryCounter)
    _verified: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Entry -> (inode, size, change time) that this process has hashed."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def folder(self) -> Path:
        """Where the entries are."""
        if self.config.folder:
            return Path(self.config.folder).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "vehicle-reid" / "shards"

    def open(self, info: ShardInfo, remote: Location) -> BinaryIO:
        """The open file of a shard, checked against its hash, fetched when it is not here.

        The file holds a shared lock that keeps it from being evicted until it is closed.

        Raises:
            ValueError: the shard is larger than the cache, or arrived damaged every time.
            OSError: the transfer failed for good.
        """
        if info.size > self.config.max_bytes:
            raise ValueError(
                f"{remote.uri} has {info.size} bytes, the cache only {self.config.max_bytes}: raise cache.max_bytes"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = self.folder / (info.sha256 + _ENTRY_SUFFIX)
        file = self._open_verified(entry, info)
        if file is not None:
            self._count("hits")
            return file
        with self._exclusive(info.sha256 + ".lock"):
            for attempt in range(self.config.attempts + 1):
                file = self._open_verified(entry, info)  # another process may have fetched it meanwhile
                if file is not None:
                    return file
                if attempt < self.config.attempts:
                    self._fetch(info, remote, entry)
        raise ValueError(f"{remote.uri} is damaged each time it lies in {self.folder}: is that disk full or broken?")

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

    def _fetch(self, info: ShardInfo, remote: Location, entry: Path) -> None:
        temporary = self.folder / f".tmp-{info.size}-{uuid.uuid4().hex}"  # the size is reserved by the name
        once = RetryPolicy(attempts=1)

        def download() -> None:
            size, sha256 = storage.copy_to_local(remote, temporary, once)
            if (size, sha256) != (info.size, info.sha256):
                self._count("corrupted")
                raise DamagedTransferError(
                    f"{remote.uri} arrived with {size} bytes and sha256 {sha256[:16]}..., the manifest says {info.size}"
                    f" bytes and {info.sha256[:16]}...: the stored shard is damaged, or another set was written there"
                )

        try:
            with self._exclusive("cache.lock"):
                self._make_room(info.size)
                temporary.touch()
            try:
                storage.retry("download", remote.uri, download, self.config.policy(), self.retries)
            except DamagedTransferError as error:
                raise ValueError(str(error)) from error
            os.replace(temporary, entry)
        finally:
            temporary.unlink(missing_ok=True)
        self._count("fetched")
        self._count("fetched_bytes", info.size)

    def _make_room(self, needed: int) -> None:
        """Deletes the least recently used entries that nobody reads, until `needed` bytes fit."""
        entries = sorted(self._entries())
        used = sum(size for _, _, size in entries)
        for accessed, path, size in entries:
            if used + needed <= self.config.max_bytes:
                return
            if path.suffix != _ENTRY_SUFFIX and time.time() - accessed / 1e9 < _STALE_SECONDS:
                continue
            if self._evict(path):
                used -= size
        if used + needed > self.config.max_bytes:
            logger.warning(
                "the shard cache %s needs %d bytes for shards in use, its limit is %d: raise cache.max_bytes or lower"
                " cache.max_open_shards",
                self.folder, used + needed, self.config.max_bytes,
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
                if item.name.endswith(_ENTRY_SUFFIX) or item.name.startswith(".tmp-"):
                    with contextlib.suppress(FileNotFoundError):
                        status = item.stat()
                        size = int(item.name.split("-")[1]) if item.name.startswith(".tmp-") else status.st_size
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
