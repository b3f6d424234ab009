"""Reading a shard set: any image by its row in the index, in microseconds, from tars on a local disk.

Local tars are memory-mapped where they are; those on object stores or behind http are read through the local cache,
which holds none of them open between two reads. A P x K batch
needs images by identity, so reading is random access and not WebDataset's stream (which is slower, too).
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from reid import storage
from reid.contracts import DataError
from reid.data.cache import CacheConfig, ShardCache
from reid.data.index import Index, index_from_parquet
from reid.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, manifest_from_json
from reid.storage import Location, RetryCounter

logger = logging.getLogger(__name__)

Verify = Literal["sizes", "full"]


class ShardSet:
    """An open shard set. Thread-safe; a pickled copy opens the set again where it is unpickled, when first used."""

    def __init__(self, location: Location, cache: CacheConfig | None = None, verify: Verify = "sizes"):
        self._location, self._cache_config = location, cache or CacheConfig()
        self._expected_hash: str | None = None
        self._lock = threading.RLock()
        self._contents: tuple[Manifest, Index] | None = None
        self._maps: dict[int, memoryview] = {}
        self._cache: ShardCache | None = None
        self._retries, self._retries_taken = RetryCounter(), Counter[str]()
        self._load(verify)

    @property
    def uri(self) -> str:
        """Address of the set's folder."""
        return self._location.uri

    @property
    def manifest(self) -> Manifest:
        """Counts, hashes, labels."""
        return (self._contents or self._load("sizes"))[0]

    @property
    def index(self) -> Index:
        """The N images."""
        return (self._contents or self._load("sizes"))[1]

    @property
    def cache_counts(self) -> Counter[str]:
        """What the cache did for this set in this process; empty for local shards."""
        return Counter() if self._cache is None else self._cache.counts + self._cache.retries.retries

    def take_retries(self) -> Counter[str]:
        """Requests to the storage that were repeated since the last call, in this process, by operation."""
        with self._lock:
            now = Counter(self._retries.retries)
            new, self._retries_taken = now - self._retries_taken, now
            return new

    def __len__(self) -> int:
        return len(self.index)

    def read_image(self, row: int) -> memoryview:
        """The bytes of an image file; of a local set without a copy.

        Args:
            row: 0..N-1 in the index.
        """
        index = self.index
        return self._read(int(index.shard[row]), int(index.image_offset[row]), int(index.image_size[row]))

    def read_mask(self, row: int) -> memoryview | None:
        """The bytes of an image's mask (PNG, 0 background, 255 vehicle); None where there is none."""
        index = self.index
        if index.mask_offset[row] < 0:
            return None
        return self._read(int(index.shard[row]), int(index.mask_offset[row]), int(index.mask_size[row]))

    def close(self) -> None:
        """Unmaps all shards; bytes handed out before stay valid until they are forgotten. Reading maps them again."""
        with self._lock:
            self._maps.clear()

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "cache": self._cache_config, "hash": self.manifest.hash}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._location, self._cache_config = storage.open_location(state["uri"]), state["cache"]
        self._expected_hash = state["hash"]
        self._lock, self._contents, self._maps, self._cache = threading.RLock(), None, {}, None
        self._retries, self._retries_taken = RetryCounter(), Counter()

    def _load(self, verify: Verify) -> tuple[Manifest, Index]:
        with self._lock:
            if self._contents is not None:
                return self._contents
            policy = self._cache_config.policy()
            entry = self._location.child(MANIFEST_NAME)
            try:
                manifest = manifest_from_json(storage.read_bytes(entry, policy, self._retries), entry.uri)
            except NotADirectoryError:
                raise DataError(f"{self.uri} is a file: pack data sets and tables with jobs/make_shards.py") from None
            except FileNotFoundError:
                raise DataError(
                    f"{self.uri} is not a shard set: it has no {MANIFEST_NAME} (never packed, packing unfinished, or a"
                    " wrong address); pack it with jobs/make_shards.py"
                ) from None
            if self._expected_hash not in {None, manifest.hash}:
                raise DataError(f"{self.uri} was replaced: expected set {self._expected_hash}, found {manifest.hash}")
            index = self._read_index(manifest)
            self._check_sizes(manifest)
            if verify == "full":
                check_hashes(manifest, self._location)
            if not self._location.is_local:
                self._cache = ShardCache(self._cache_config, retries=self._retries)
            self._contents = manifest, index
            return self._contents

    def _read_index(self, manifest: Manifest) -> Index:
        entry = self._location.child(manifest.index.name)
        try:
            data = storage.read_bytes(entry, self._cache_config.policy(), self._retries)
        except FileNotFoundError:
            raise DataError(f"{entry.uri} is missing: copy or pack the set again") from None
        if storage.sha256_of(data) != manifest.index.sha256:
            raise DataError(f"{entry.uri} is damaged: its sha256 is not the manifest's; copy or pack the set again")
        return index_from_parquet(data, entry.uri)[0]

    def _check_sizes(self, manifest: Manifest) -> None:
        if self._location.is_read_only:
            return
        present = storage.list_sizes(self._location, self._cache_config.policy(), self._retries)
        problems = []
        for shard in manifest.shards:
            size = present.get(shard.name)
            if size is None:
                problems.append(f"{shard.name} is missing")
            elif size != shard.size:
                problems.append(f"{shard.name} has {size} bytes, expected {shard.size}")
        _refuse(problems, self._location, len(manifest.shards))

    def _read(self, shard: int, offset: int, size: int) -> memoryview:
        if not self._location.is_local:
            return self._read_cached(self.manifest.shards[shard], offset, size)
        content = self._maps.get(shard)
        if content is None:
            content = self._map(shard)
        return content[offset : offset + size]

    def _read_cached(self, info: ShardInfo, offset: int, size: int) -> memoryview:
        assert self._cache is not None, "made when the manifest was read"
        return memoryview(self._cache.read(info, self._location.child(info.name), offset, size))

    def _map(self, shard: int) -> memoryview:
        with self._lock:
            content = self._maps.get(shard)
            if content is None:
                # A mapping lives as long as any view of it, so that dropping ours is always safe.
                content = self._maps[shard] = self._open(self.manifest.shards[shard])
            return content

    def _open(self, info: ShardInfo) -> memoryview:
        location = self._location.child(info.name)
        try:
            file = open(location.local_path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            raise DataError(f"{location.uri} has vanished since the shard set was opened") from None
        with file:
            size = os.fstat(file.fileno()).st_size
            if size != info.size:  # before mapping, which refuses an empty file
                raise DataError(f"{location.uri} has {size} bytes, the manifest says {info.size}: copy it again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def open_shards(uri: str | Path | Location, cache: CacheConfig | None = None, verify: Verify = "sizes") -> ShardSet:
    """The shard set in a folder.

    Args:
        uri: Folder of the set: local path, `s3://`, `gs://`, `http(s)://`.
        cache: Where and how much remote shards are kept; the default folder when None. Local sets never use it.
        verify: "sizes" compares the size of every shard with the manifest (over http: when it is read); "full" also
            their SHA-256, which reads the whole set.

    Raises:
        DataError: no complete set there, or manifest, index or a shard is missing or damaged; each bad shard is named.
    """
    return ShardSet(uri if isinstance(uri, Location) else storage.open_location(uri), cache, verify)


def check_hashes(manifest: Manifest, location: Location) -> None:
    """DataError naming every shard whose content is not what the manifest says; reads the whole set."""
    problems = [
        f"{shard.name} is damaged (sha256 differs)"
        for shard in manifest.shards
        if storage.sha256_of(location.child(shard.name)) != shard.sha256
    ]
    _refuse(problems, location, len(manifest.shards))


def _refuse(problems: list[str], location: Location, num_shards: int) -> None:
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"{len(problems)} of {num_shards} shards in {location.uri} (host {os.uname().nodename}) are not whole:"
            f" {'; '.join(problems[:5])}{more}; copy or pack the set again"
        )
