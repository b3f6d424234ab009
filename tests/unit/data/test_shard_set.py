"""Opening and reading a shard set: random access, pickling, threads, and sets that are not whole."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from reid.contracts import DataError
from reid.data.cache import CacheConfig
from reid.data.manifest import INDEX_NAME, MANIFEST_NAME
from reid.data.shard_set import ShardSet, open_shards
from reid.data.shards import pack_shards
from tests.unit.data.raw_images import SMALL, draw_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = draw_records(tmp_path / "raw", masks=True)
    pack_shards(records, tmp_path / "set", SMALL)
    return tmp_path / "set"


def all_images(shards: ShardSet) -> list[bytes]:
    return [bytes(shards.read_image(row)) for row in range(len(shards))]


def test_rows_are_read_in_any_order_and_without_copies(folder: Path) -> None:
    with open_shards(folder) as shards:
        expected = all_images(shards)
        for row in np.random.default_rng(0).permutation(len(shards)):
            view = shards.read_image(int(row))
            assert view.readonly
            assert bytes(view) == expected[row]
        assert expected[0].startswith(b"\xff\xd8")


@pytest.mark.parametrize("damage", ["cut", "delete"])
def test_a_shard_that_changes_after_opening_is_a_fault_of_the_data(folder: Path, damage: str) -> None:
    shards = open_shards(folder)
    if damage == "cut":
        (folder / "train-000000.tar").write_bytes(b"short")
    else:
        (folder / "train-000000.tar").unlink()
    number = [shard.name for shard in shards.manifest.shards].index("train-000000.tar")
    with pytest.raises(DataError, match=r"train-000000\.tar has (vanished|5 bytes)"):
        shards.read_image(int(np.flatnonzero(shards.index.shard == number)[0]))


def test_bytes_stay_valid_after_the_set_is_closed_and_reading_opens_it_again(folder: Path) -> None:
    shards = open_shards(folder)
    view = shards.read_image(3)
    expected = bytes(view)
    shards.close()
    assert bytes(view) == expected
    assert bytes(shards.read_image(3)) == expected


def test_a_pickled_set_is_small_and_opens_where_it_arrives(folder: Path) -> None:
    shards = open_shards(str(folder))
    shards.read_image(0)
    data = pickle.dumps(shards)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert all_images(copy) == all_images(shards)
    assert copy.manifest == shards.manifest


def test_another_process_reads_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    shards = open_shards(folder)
    (tmp_path / "pickle").write_bytes(pickle.dumps(shards))
    # Ended without a word to the libraries: what their own teardown does under load is not what is tested.
    code = (
        "import os, pickle, sys; s = pickle.load(open(sys.argv[1], 'rb')); sys.stdout.buffer.write(s.read_image(5));"
        " sys.stdout.flush(); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "pickle")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == bytes(shards.read_image(5))


def test_a_set_that_was_replaced_after_pickling_is_refused(folder: Path, tmp_path: Path) -> None:
    data = pickle.dumps(open_shards(folder))
    fewer = draw_records(tmp_path / "raw", {"train": [3, 3]})
    pack_shards(fewer, folder, SMALL, overwrite=True)
    with pytest.raises(DataError, match="was replaced"):
        pickle.loads(data).read_image(0)


def test_threads_read_at_the_same_time(folder: Path) -> None:
    shards = open_shards(folder)
    expected = all_images(open_shards(folder))
    rows = np.random.default_rng(0).integers(0, len(shards), 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda row: bytes(shards.read_image(row)), rows))
    assert actual == [expected[row] for row in rows]


def test_a_folder_without_manifest_is_no_set(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(ValueError, match=r"no manifest\.json .*pack it with jobs/make_shards\.py"):
        open_shards(folder)


@pytest.mark.parametrize("verify", ["sizes", "full"])
def test_missing_and_cut_shards_are_all_named_at_open(folder: Path, verify: str) -> None:
    (folder / "train-000000.tar").unlink()
    with open(folder / "query-000000.tar", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(
        ValueError, match=r"2 of 5 shards .*train-000000\.tar is missing; query-000000\.tar has 1000 bytes"
    ):
        open_shards(folder, verify="full" if verify == "full" else "sizes")


def test_a_flipped_bit_is_found_at_open_when_the_full_check_is_asked_for(folder: Path) -> None:
    path = folder / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    open_shards(folder)
    with pytest.raises(ValueError, match=r"1 of 5 shards .*train-000001\.tar is damaged"):
        open_shards(folder, verify="full")


@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_damaged_or_missing_index_is_found_at_every_open(folder: Path, damage: str) -> None:
    path = folder / INDEX_NAME
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"index\.parquet is (damaged|missing)"):
        open_shards(folder)


def test_unsafe_addresses_are_refused_before_anything_runs(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    with pytest.raises(ValueError, match="the scheme pipe: is not one of"):
        open_shards(f"pipe:touch {witness}")
    assert not witness.exists()


def test_local_sets_never_touch_the_cache(folder: Path, tmp_path: Path) -> None:
    shards = open_shards(folder, CacheConfig(folder=str(tmp_path / "cache")))
    all_images(shards)
    assert not (tmp_path / "cache").exists()
    assert not shards.cache_counts
