"""Shard sets on an object store (a local S3 server): packing, reading through the cache, verification, retries."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from reid import storage
from reid.contracts import Record
from reid.data.cache import CacheConfig
from reid.data.enriched_shard import EnrichTask
from reid.data.enrichment import enrich_shards
from reid.data.manifest import MANIFEST_NAME
from reid.data.shard_set import open_shards
from reid.data.shards import ShardResult, ShardTask, pack_shards
from reid.data.staging import ShardWork
from reid.data.verify import verify_shards
from reid.storage import Location, RetryCounter, RetryPolicy
from tests.s3_server import Gate, s3_server
from tests.unit.data.enrichments import Painted
from tests.unit.data.raw_images import SMALL, draw_records

FAST = RetryPolicy(base_seconds=0.001)


@pytest.fixture(scope="module")
def server() -> Iterator[Gate]:
    with s3_server("data") as gate:
        yield gate


@pytest.fixture
def gate(server: Gate) -> Gate:
    server.requests.clear()
    server.failures.clear()
    return server


@pytest.fixture
def uri(gate: Gate, request: pytest.FixtureRequest) -> str:
    name = re.sub(r"\W+", "-", request.node.name)
    return f"s3://data/{name}"


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return draw_records(tmp_path / "raw", masks=True)


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(folder=str(tmp_path / "cache"), wait_seconds=0.001)


def test_a_set_on_s3_equals_the_local_one(
    tmp_path: Path, uri: str, gate: Gate, records: list[Record], cache: CacheConfig
) -> None:
    expected = pack_shards(records, tmp_path / "local", SMALL)
    assert pack_shards(records, uri, SMALL) == expected
    near, far = open_shards(tmp_path / "local"), open_shards(uri, cache)
    assert far.manifest == near.manifest
    for row in range(len(near)):
        assert far.read_image(row) == near.read_image(row)
        assert far.read_mask(row) == near.read_mask(row)
    assert far.cache_counts["fetched"] == len(expected.shards)
    assert storage.list_names(storage.open_location(uri)) == sorted(
        path.name for path in (tmp_path / "local").iterdir()
    )
    gate.requests.clear()
    copy = pickle.loads(pickle.dumps(far))
    assert copy.read_image(0) == near.read_image(0)
    assert not [line for line in gate.requests if line.endswith(".tar") and line.startswith("GET")]


def test_the_manifest_is_uploaded_last(uri: str, gate: Gate, records: list[Record]) -> None:
    pack_shards(records, uri, SMALL)
    written = [line for line in gate.requests if line.startswith(("PUT", "POST")) and not line.endswith("/data")]
    last_shard = max(number for number, line in enumerate(written) if line.endswith((".tar", ".parquet")))
    first_manifest = min(number for number, line in enumerate(written) if line.endswith(MANIFEST_NAME))
    assert first_manifest > last_shard


def test_an_interrupted_upload_is_no_set_and_continues(uri: str, gate: Gate, records: list[Record]) -> None:
    def die_after_two(tasks: Sequence[ShardTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        for task in tasks[:2]:
            yield work(task, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_shards(records, uri, SMALL, run_tasks=die_after_two)
    with pytest.raises(ValueError, match="is not a shard set"):
        open_shards(uri)
    kept: list[bool] = []
    pack_shards(records, uri, SMALL, progress=lambda _, __, result: kept.append(result.kept))
    assert kept == [True, True, False, False, False]
    assert verify_shards(uri, decode=True).passed


def test_enriching_on_s3_gives_the_local_set_and_continues(
    tmp_path: Path, uri: str, gate: Gate, records: list[Record]
) -> None:
    pack_shards(records, tmp_path / "source", SMALL)
    pack_shards(records, f"{uri}/source", SMALL)
    expected = enrich_shards(tmp_path / "source", tmp_path / "target", Painted())

    def die_after_two(tasks: Sequence[EnrichTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        for task in tasks[:2]:
            yield work(task, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enrich_shards(f"{uri}/source", f"{uri}/target", Painted(), run_tasks=die_after_two)
    with pytest.raises(ValueError, match="is not a shard set"):
        open_shards(f"{uri}/target")
    kept: list[bool] = []
    actual = enrich_shards(
        f"{uri}/source", f"{uri}/target", Painted(), progress=lambda _, __, result: kept.append(result.kept)
    )
    assert kept == [True, True, False, False, False]
    assert actual == expected
    assert verify_shards(f"{uri}/target", decode=True).passed
    assert storage.list_names(storage.open_location(f"{uri}/target")) == sorted(
        path.name for path in (tmp_path / "target").iterdir()
    )
    with pytest.raises(ValueError, match="is the source or inside it"):
        enrich_shards(f"{uri}/source", f"{uri}/source/", Painted(), overwrite=True)


def test_another_set_on_s3_is_replaced_only_when_asked(uri: str, records: list[Record]) -> None:
    pack_shards(records, uri, SMALL)
    train = [record for record in records if record.split == "train"]
    with pytest.raises(ValueError, match="holds another shard set"):
        pack_shards(train, uri, SMALL)
    manifest = pack_shards(train, uri, SMALL, overwrite=True)
    assert manifest.counts == {"train": 10}
    assert verify_shards(uri).passed


def test_verification_reads_the_store_and_finds_a_flipped_bit(
    uri: str, records: list[Record], cache: CacheConfig
) -> None:
    pack_shards(records, uri, SMALL)
    shards = open_shards(uri, cache)
    shards.read_image(0)
    assert verify_shards(shards).passed
    location = storage.open_location(uri).child("train-000000.tar")
    data = bytearray(storage.read_bytes(location))
    data[len(data) // 2] ^= 1
    storage.write_bytes_atomic(location, bytes(data))
    report = verify_shards(shards)
    assert {problem.file for problem in report.problems} == {"train-000000.tar"}
    fresh = open_shards(uri, cache.model_copy(update={"folder": cache.folder + "2", "attempts": 2}))
    with pytest.raises(ValueError, match=r"train-000000\.tar arrived with .* the stored shard is damaged"):
        fresh.read_image(0)
    with pytest.raises(ValueError, match=r"train-000000\.tar is damaged"):
        open_shards(uri, cache, verify="full")


def test_a_missing_or_cut_shard_on_s3_is_found_at_open(uri: str, records: list[Record], cache: CacheConfig) -> None:
    pack_shards(records, uri, SMALL)
    folder = storage.open_location(uri)
    storage.delete_tree(folder.child("query-000000.tar"))
    storage.write_bytes_atomic(folder.child("train-000001.tar"), b"short")
    with pytest.raises(ValueError, match=r"2 of 5 .*train-000001\.tar has 5 bytes.*query-000000\.tar is missing"):
        open_shards(uri, cache)


def test_throttling_is_waited_out_and_counted(uri: str, gate: Gate, records: list[Record], cache: CacheConfig) -> None:
    pack_shards(records, uri, SMALL)
    shards = open_shards(uri, cache)
    gate.failures += [(r"(GET|HEAD) .*\.tar", "503 Slow Down")] * 2 + [(r"(GET|HEAD) .*\.tar", "500 Internal Error")]
    assert bytes(shards.read_image(0)).startswith(b"\xff\xd8")
    assert gate.failures == []
    assert shards.cache_counts["download"] == 3


def test_writing_and_listing_are_repeated_too(uri: str, gate: Gate) -> None:
    counter = RetryCounter()
    location = storage.open_location(uri).child("file")
    gate.failures += [("PUT|POST", "503 Slow Down"), ("GET /data$", "503 Slow Down")]
    storage.write_bytes_atomic(location, b"content", FAST, counter)
    assert storage.list_sizes(storage.open_location(uri), FAST, counter) == {"file": 7}
    assert storage.read_bytes(location, FAST, counter) == b"content"
    assert counter.retries == {"write": 1, "list": 1}
    assert gate.failures == []


def test_refused_access_is_not_repeated(uri: str, gate: Gate) -> None:
    location = storage.open_location(uri).child("file")
    storage.write_bytes_atomic(location, b"content")
    counter = RetryCounter()
    gate.failures += [("(GET|HEAD) .*file", "403 Forbidden")] * 2
    with pytest.raises(OSError, match=r"ACCESS_DENIED|AccessDenied|403"):
        storage.read_bytes(location, FAST, counter)
    assert not counter.retries


def test_a_missing_object_and_a_missing_bucket_are_told_at_once(gate: Gate) -> None:
    counter = RetryCounter()
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.open_location("s3://data/none"), FAST, counter)
    with pytest.raises(OSError, match="nowhere"):
        storage.write_bytes_atomic(storage.open_location("s3://nowhere/file"), b"x", FAST, counter)
    assert not counter.retries
    assert not storage.exists(storage.open_location("s3://data/none"))


def test_a_dead_server_is_given_up_after_the_attempts(tmp_path: Path, gate: Gate) -> None:
    location = storage.open_location("s3://data/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
    counter = RetryCounter()
    with pytest.raises(OSError, match="NETWORK_CONNECTION") as caught:
        storage.read_bytes(location, RetryPolicy(attempts=3, base_seconds=0.001), counter)
    assert counter.retries == {"read": 2}
    assert "failed 3 times" in caught.value.__notes__[0]


def test_an_address_may_name_its_server(server: Gate, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes_atomic(storage.open_location(uri).child("file"), b"content")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    folder = storage.open_location(f"{uri}?endpoint_override={server.address}&scheme=http&region=us-east-1")
    file = folder.child("file")
    assert storage.read_bytes(file) == b"content"
    assert file.uri == f"{uri}/file?endpoint_override={server.address}&scheme=http&region=us-east-1"
    assert storage.read_bytes(storage.open_location(file.uri)) == b"content"
    assert storage.read_bytes(pickle.loads(pickle.dumps(file))) == b"content"


def test_folders_are_deleted_with_all_they_hold_and_nothing_else(uri: str) -> None:
    folder = storage.open_location(uri)
    for name in ("one/a", "one/deep/b", "one-more"):
        storage.write_bytes_atomic(folder.child(name), b"x")
    storage.delete_tree(folder.child("one"))
    assert storage.list_names(folder) == ["one-more"]
    storage.delete_tree(folder.child("none"))
