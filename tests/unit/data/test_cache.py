"""The local cache of remote shards: bounded, shared, checked. The far side is a folder behind a local web server."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from reid.contracts import DataError
from reid.data.cache import CacheConfig, ShardCache
from reid.data.manifest import ShardInfo
from reid.data.plan import PlanConfig
from reid.data.shard_set import open_shards
from reid.data.shards import pack_shards
from reid.data.stream import LoaderConfig, TrainStream
from reid.data.transforms import TransformConfig
from reid.storage import Location, open_location
from tests.unit.data.raw_images import SMALL, draw_records

SIZE = 1000


class Handler(SimpleHTTPRequestHandler):
    """Serves files, counts requests, and damages what it is told to."""

    requests: ClassVar[Counter[str]] = Counter()
    damage: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        Handler.requests[name] += 1
        if Handler.damage[name] > 0:
            Handler.damage[name] -= 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"not the shard")
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Location]:
    Handler.requests, Handler.damage = Counter(), Counter()
    (tmp_path / "far").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "far"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield open_location(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def make_shard(tmp_path: Path, number: int, size: int = SIZE) -> ShardInfo:
    data = bytes([number]) * size
    name = f"train-{number:06d}.tar"
    (tmp_path / "far" / name).write_bytes(data)
    return ShardInfo(name=name, split="train", size=size, sha256=hashlib.sha256(data).hexdigest(), count=1)


def make_cache(tmp_path: Path, **changes: Any) -> ShardCache:
    return ShardCache(CacheConfig(folder=str(tmp_path / "cache"), wait_seconds=0.001, **changes))


def read(cache: ShardCache, info: ShardInfo, remote: Location) -> bytes:
    return cache.read(info, remote.child(info.name), 0, info.size)


def test_a_shard_is_fetched_once_and_then_read_from_the_disk(tmp_path: Path, remote: Location) -> None:
    cache, info = make_cache(tmp_path), make_shard(tmp_path, 1)
    for _ in range(3):
        assert read(cache, info, remote) == b"\1" * SIZE
    assert read(make_cache(tmp_path), info, remote) == b"\1" * SIZE
    assert Handler.requests == {info.name: 1}
    assert cache.counts == {"fetched": 1, "fetched_bytes": SIZE, "hits": 2}


def test_the_least_recently_used_shards_make_room_within_the_limit(tmp_path: Path, remote: Location) -> None:
    cache = make_cache(tmp_path, max_bytes=3 * SIZE)
    infos = [make_shard(tmp_path, number) for number in range(5)]
    for info in infos[:3]:
        read(cache, info, remote)
        time.sleep(0.01)
    read(cache, infos[0], remote)
    time.sleep(0.01)
    read(cache, infos[3], remote)
    present = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
    assert present == {infos[number].sha256 for number in (0, 2, 3)}
    assert cache.num_bytes() == 3 * SIZE
    assert cache.counts["evicted"] == 1


def test_the_cache_never_grows_beyond_its_limit(tmp_path: Path, remote: Location) -> None:
    cache = make_cache(tmp_path, max_bytes=2 * SIZE)
    infos = [make_shard(tmp_path, number) for number in range(8)]
    for number in [0, 1, 2, 3, 4, 5, 6, 7, 3, 1, 0, 7]:
        read(cache, infos[number], remote)
        assert cache.num_bytes() <= 2 * SIZE


@contextlib.contextmanager
def read_elsewhere(tmp_path: Path, info: ShardInfo) -> Iterator[None]:
    """The entry's lock, as a process holds it while it reads."""
    with open(tmp_path / "cache" / f"{info.sha256}.tar", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def test_a_shard_that_is_being_read_is_not_evicted(tmp_path: Path, remote: Location) -> None:
    cache = make_cache(tmp_path, max_bytes=2 * SIZE)
    infos = [make_shard(tmp_path, number) for number in range(4)]
    read(cache, infos[0], remote)
    with read_elsewhere(tmp_path, infos[0]):
        for info in infos[1:]:
            read(cache, info, remote)
        assert (tmp_path / "cache" / f"{infos[0].sha256}.tar").exists()
    assert cache.num_bytes() == 2 * SIZE


def test_a_download_waits_for_room_that_others_need(tmp_path: Path, remote: Location) -> None:
    cache = make_cache(tmp_path, max_bytes=SIZE)
    infos = [make_shard(tmp_path, number) for number in range(2)]
    read(cache, infos[0], remote)
    with ThreadPoolExecutor(1) as pool:
        with read_elsewhere(tmp_path, infos[0]):
            content = pool.submit(read, cache, infos[1], remote)
            time.sleep(0.2)
            assert not content.done()
            assert cache.num_bytes() == SIZE
        assert content.result(timeout=10) == b"\1" * SIZE
    assert cache.num_bytes() == SIZE


def test_room_that_nobody_makes_is_taken_and_said(
    tmp_path: Path, remote: Location, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(tmp_path, max_bytes=SIZE)
    cache.patience_seconds = 0.1
    infos = [make_shard(tmp_path, number) for number in range(2)]
    read(cache, infos[0], remote)
    with read_elsewhere(tmp_path, infos[0]):
        assert read(cache, infos[1], remote) == b"\1" * SIZE
    assert "takes 2000 bytes, its limit is 1000: other processes have kept 1000 bytes busy" in caplog.text


def test_a_limit_below_what_is_read_at_the_same_time_is_said_once(
    tmp_path: Path, remote: Location, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(tmp_path, max_bytes=2 * SIZE)
    infos = [make_shard(tmp_path, number) for number in range(3)]
    for info in infos * 3:
        read(cache, info, remote)
    assert caplog.text.count("2000 bytes do not hold the shards that are read at the same time") == 1


def test_a_shard_larger_than_the_cache_is_refused(tmp_path: Path, remote: Location) -> None:
    with pytest.raises(ValueError, match=r"train-000001\.tar has 1000 bytes, the cache only 999"):
        read(make_cache(tmp_path, max_bytes=SIZE - 1), make_shard(tmp_path, 1), remote)


def test_a_damaged_arrival_is_fetched_again(tmp_path: Path, remote: Location) -> None:
    cache, info = make_cache(tmp_path), make_shard(tmp_path, 1)
    Handler.damage[info.name] = 2
    assert read(cache, info, remote) == b"\1" * SIZE
    assert cache.counts["corrupted"] == 2
    assert cache.retries.retries == {"download": 2}


def test_a_shard_that_always_arrives_damaged_is_refused_and_leaves_nothing(tmp_path: Path, remote: Location) -> None:
    cache, info = make_cache(tmp_path, attempts=3), make_shard(tmp_path, 1)
    Handler.damage[info.name] = 99
    with pytest.raises(DataError, match=r"train-000001\.tar arrived with 13 bytes .* the manifest says 1000 bytes"):
        read(cache, info, remote)
    assert Handler.requests == {info.name: 3}
    assert cache.num_bytes() == 0
    assert not list((tmp_path / "cache").glob(".tmp-*"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_found_and_fetched_again(tmp_path: Path, remote: Location, damage: str) -> None:
    info = make_shard(tmp_path, 1)
    read(make_cache(tmp_path), info, remote)
    entry = tmp_path / "cache" / f"{info.sha256}.tar"
    entry.write_bytes({"flip": b"\1" * (SIZE - 1) + b"\0", "cut": b"\1" * 10, "empty": b""}[damage])
    cache = make_cache(tmp_path)
    assert read(cache, info, remote) == b"\1" * SIZE
    assert cache.counts["corrupted"] == 1
    assert Handler.requests == {info.name: 2}


def test_an_entry_that_changes_under_a_running_process_is_noticed(tmp_path: Path, remote: Location) -> None:
    cache, info = make_cache(tmp_path), make_shard(tmp_path, 1)
    read(cache, info, remote)
    entry = tmp_path / "cache" / f"{info.sha256}.tar"
    entry.write_bytes(b"\1" * (SIZE - 1) + b"\0")
    assert read(cache, info, remote) == b"\1" * SIZE
    assert cache.counts["corrupted"] == 1


def test_a_missing_shard_is_an_error_at_once(tmp_path: Path, remote: Location) -> None:
    info = make_shard(tmp_path, 1)
    (tmp_path / "far" / info.name).unlink()
    with pytest.raises(FileNotFoundError, match="train-000001"):
        read(make_cache(tmp_path), info, remote)
    assert Handler.requests == {info.name: 1}


def test_what_a_dead_process_left_is_removed_when_room_is_needed(tmp_path: Path, remote: Location) -> None:
    cache = make_cache(tmp_path, max_bytes=2 * SIZE)
    (tmp_path / "cache").mkdir()
    dead = tmp_path / "cache" / f".tmp-{2 * SIZE}-dead"
    dead.write_bytes(b"half")
    read(cache, make_shard(tmp_path, 1), remote)
    assert not dead.exists()
    alive = tmp_path / "cache" / f".tmp-{SIZE}-alive"
    with open(alive, "xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        read(cache, make_shard(tmp_path, 2), remote)
        assert alive.exists(), "another process is fetching it"
    assert [path.stem for path in (tmp_path / "cache").glob("*.tar")] == [make_shard(tmp_path, 2).sha256]


def test_many_threads_fetch_each_shard_once(tmp_path: Path, remote: Location) -> None:
    cache = make_cache(tmp_path)
    infos = [make_shard(tmp_path, number) for number in range(4)]
    with ThreadPoolExecutor(16) as pool:
        contents = list(pool.map(lambda number: read(cache, infos[number % 4], remote), range(64)))
    assert contents == [bytes([number % 4]) * SIZE for number in range(64)]
    assert Handler.requests == {info.name: 1 for info in infos}


def fetch_all(folder: str, uri: str, infos: list[ShardInfo], max_bytes: int) -> None:
    cache = ShardCache(CacheConfig(folder=folder, max_bytes=max_bytes, wait_seconds=0.001))
    for _ in range(3):
        for info in infos:
            assert read(cache, info, open_location(uri)) == bytes([int(info.name[6:12])]) * SIZE
            assert cache.num_bytes() <= max_bytes


FORKING = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 dislikes it beside threads


@FORKING
@pytest.mark.parametrize(("limit", "requests"), [(10 * SIZE, 1), (2 * SIZE, None)])
def test_processes_share_one_cache(tmp_path: Path, remote: Location, limit: int, requests: int | None) -> None:
    infos = [make_shard(tmp_path, number) for number in range(4)]
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache"), remote.uri, infos, limit)
    processes = [context.Process(target=fetch_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    if requests is not None:
        assert set(Handler.requests.values()) == {requests}
    assert make_cache(tmp_path).num_bytes() <= limit
    assert not list((tmp_path / "cache").glob(".tmp-*"))


@FORKING
def test_a_lock_of_a_dead_process_blocks_nobody(tmp_path: Path, remote: Location) -> None:
    info = make_shard(tmp_path, 1)
    (tmp_path / "cache").mkdir()
    lock = tmp_path / "cache" / f"{info.sha256}.lock"
    child = os.fork()
    if child == 0:
        descriptor = os.open(lock, os.O_CREAT | os.O_WRONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os._exit(0)
    os.waitpid(child, 0)
    assert lock.exists()
    assert read(make_cache(tmp_path), info, remote) == b"\1" * SIZE


def test_a_set_behind_http_reads_like_a_local_one(tmp_path: Path, remote: Location) -> None:
    pack_shards(draw_records(tmp_path / "raw", masks=True), tmp_path / "far" / "set", SMALL)
    config = CacheConfig(folder=str(tmp_path / "cache"), wait_seconds=0.001)
    near, far = open_shards(tmp_path / "far" / "set"), open_shards(f"{remote.uri}/set", config)
    for _ in range(2):
        for row in range(len(near)):
            assert far.read_image(row) == near.read_image(row)
            assert far.read_mask(row) == near.read_mask(row)
    assert far.cache_counts["fetched"] == 5
    assert Handler.requests["set/train-000000.tar"] == 1


def test_reading_a_set_larger_than_the_limit_keeps_within_it(tmp_path: Path, remote: Location) -> None:
    manifest = pack_shards(draw_records(tmp_path / "raw"), tmp_path / "far" / "set", SMALL)
    limit = 2 * max(shard.size for shard in manifest.shards)
    config = CacheConfig(folder=str(tmp_path / "cache"), max_bytes=limit, wait_seconds=0.001)
    several = [open_shards(f"{remote.uri}/set", config) for _ in range(3)]  # as workers, loaders and evaluations are
    cache = ShardCache(config)
    views = []
    for row in range(len(several[0])):
        for shards in several:
            views.append(shards.read_image(row))
            assert cache.num_bytes() <= limit
    assert len(manifest.shards) > 2
    near = open_shards(tmp_path / "far" / "set")
    assert views == [near.read_image(row) for row in range(len(near)) for _ in several], "bytes stay valid"


@pytest.mark.parametrize("processes", [0, 1])
def test_repeated_downloads_are_told_to_the_stream_by_loader_processes_too(
    tmp_path: Path, remote: Location, processes: int
) -> None:
    manifest = pack_shards(draw_records(tmp_path / "raw"), tmp_path / "far" / "set", SMALL)
    config = CacheConfig(folder=str(tmp_path / "cache"), wait_seconds=0.001)
    shards = open_shards(f"{remote.uri}/set", config)
    trained = [shard.name for shard in manifest.shards if shard.split == "train"]
    Handler.damage.update({f"set/{name}": 2 for name in trained})
    plan, transform = PlanConfig(identities_per_batch=2, images_per_identity=2), TransformConfig(height=16, width=16)
    stream = TrainStream(shards, plan, transform, LoaderConfig(processes=processes), seed=0)
    for epoch in range(2):
        assert len(list(stream.batches(epoch))) == stream.steps_in_epoch(epoch)
    stream.close()
    assert stream.retries == {"download": 2 * len(trained)}
