"""Packing: what goes where, the same set every time, and what happens to bad input and interrupted runs."""

from __future__ import annotations

import gc
import json
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from reid.contracts import Record
from reid.data.manifest import MANIFEST_NAME
from reid.data.shard_set import open_shards
from reid.data.shards import (
    PackConfig,
    ShardResult,
    ShardTask,
    pack_shards,
    plan_shards,
    write_shard,
)
from reid.data.staging import ShardWork, run_in_this_process
from reid.data.verify import verify_shards
from reid.storage import Location, open_location
from tests.unit.data.raw_images import SMALL, draw_records, encoded_noise


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return draw_records(tmp_path / "raw", masks=True)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_all_images_of_a_vehicle_lie_in_one_shard_and_shards_are_balanced(tmp_path: Path) -> None:
    counts = [int(n) for n in np.random.default_rng(0).integers(1, 30, 60)]
    config = PackConfig(min_train_shards=8)
    plan = plan_shards(draw_records(tmp_path, {"train": counts}), config)
    assert len(plan.tasks) == 8
    homes: dict[str, set[int]] = {}
    for task in plan.tasks:
        for record in task.records:
            homes.setdefault(record.vehicle_id, set()).add(task.number)
    assert {len(shards) for shards in homes.values()} == {1}
    sizes = [len(task.records) for task in plan.tasks]
    assert sum(sizes) == sum(counts)
    assert max(sizes) - min(sizes) <= 2


def test_there_are_as_many_shards_as_lanes_need_and_bytes_allow(records: list[Record]) -> None:
    def shards(config: PackConfig) -> Counter[str]:
        return Counter(task.split for task in plan_shards(records, config).tasks)

    assert shards(PackConfig()) == {"train": 4, "query": 2, "gallery": 2}, "no more shards than vehicles"
    assert shards(SMALL) == {"train": 3, "query": 1, "gallery": 1}
    tiny = SMALL.model_copy(update={"target_shard_bytes": 1000, "min_train_shards": 1})
    assert shards(tiny)["train"] == 4


def test_the_plan_does_not_depend_on_the_order_of_the_records(records: list[Record]) -> None:
    assert plan_shards(records[::-1], SMALL).digest == plan_shards(records, SMALL).digest


def test_two_packings_are_the_same_bytes_and_the_same_hash(tmp_path: Path, records: list[Record]) -> None:
    first = pack_shards(records, tmp_path / "one", SMALL)
    second = pack_shards(records[::-1], tmp_path / "two", SMALL)
    assert first == second
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_the_hash_ignores_where_the_raw_files_lie_and_when_they_were_written(tmp_path: Path) -> None:
    one = pack_shards(draw_records(tmp_path / "raw1"), tmp_path / "one", SMALL)
    two = pack_shards(draw_records(tmp_path / "raw2"), tmp_path / "two", SMALL)
    assert one.hash == two.hash
    assert one.plan_digest != two.plan_digest


def test_a_packed_set_holds_the_raw_bytes_and_all_that_the_records_say(tmp_path: Path, records: list[Record]) -> None:
    manifest = pack_shards(records, tmp_path / "set", SMALL)
    assert manifest.counts == manifest.source_counts == {"train": 10, "query": 2, "gallery": 3}
    assert manifest.identities == {"train": 4, "query": 2, "gallery": 2}
    assert manifest.labels == ("0000", "0001", "0002", "0003")
    by_key = {record.key: record for record in records}
    with open_shards(tmp_path / "set") as shards:
        index = shards.index
        assert len(index) == len(records)
        for row in range(len(index)):
            record = by_key[index.key[row]]
            assert bytes(shards.read_image(row)) == record.path.read_bytes()
            assert record.mask_path is not None
            mask = shards.read_mask(row)
            assert mask is not None
            assert bytes(mask) == record.mask_path.read_bytes()
            assert index.vehicle_id[row] == record.vehicle_id
            assert index.camera_id[row] == (record.camera_id or "")
            assert index.timestamp[row] == record.timestamp
            assert index.orientation[row] == (-1 if record.orientation is None else record.orientation)
            assert index.subsets[row] == record.subsets
            assert (index.width[row], index.height[row]) == (24, 18)
            assert index.has_keypoints[row] == (record.keypoints is not None)
            expected = np.zeros((20, 3)) if record.keypoints is None else record.keypoints
            np.testing.assert_array_equal(index.keypoints[row], expected)


def read_with_webdataset(urls: list[str]) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).map_dict(json=json.loads))
        gc.collect()
    return samples


def test_any_webdataset_reader_opens_the_shards(tmp_path: Path, records: list[Record]) -> None:
    manifest = pack_shards(records, tmp_path / "set", SMALL)
    urls = [str(tmp_path / "set" / shard.name) for shard in manifest.shards]
    samples = {sample["__key__"]: sample for sample in read_with_webdataset(urls)}
    assert samples.keys() == {record.key for record in records}
    for record in records:
        sample = samples[record.key]
        assert sample["jpg"] == record.path.read_bytes()
        assert record.mask_path is not None
        assert sample["mask.png"] == record.mask_path.read_bytes()
        metadata = sample["json"]
        assert metadata["vehicle_id"] == record.vehicle_id
        assert metadata["camera_id"] == record.camera_id
        assert metadata["subsets"] == list(record.subsets)
        assert metadata["attributes"] == {"colour": "red"}
        assert (metadata["width"], metadata["height"]) == (24, 18)
        assert metadata["keypoints"] == (None if record.keypoints is None else record.keypoints.tolist())


def test_the_tars_carry_no_clock_and_no_owner(tmp_path: Path, records: list[Record]) -> None:
    pack_shards(records, tmp_path / "set", SMALL)
    with tarfile.open(tmp_path / "set" / "train-000000.tar") as tar:
        about = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isreg()) for m in tar.getmembers()}
    assert about == {(0, 0, 0, "", "", 0o644, True)}


def test_a_key_of_128_letters_fits(tmp_path: Path) -> None:
    (record,) = draw_records(tmp_path / "raw", {"train": [1]}, masks=True)
    long = replace(record, key="k" * 128)
    manifest = pack_shards([long], tmp_path / "set", SMALL)
    assert verify_shards(tmp_path / "set", decode=True).problems == ()
    (sample,) = read_with_webdataset([str(tmp_path / "set" / manifest.shards[0].name)])
    assert sample["__key__"] == "k" * 128


def test_bad_images_are_left_out_and_counted_by_reason(tmp_path: Path, records: list[Record]) -> None:
    records[0].path.write_bytes(records[0].path.read_bytes()[:-40])
    records[1].path.write_bytes(b"<html>")
    records[5].path.write_bytes(encoded_noise(1, 4, 4))
    records[6].path.unlink()
    records[7].path.write_bytes(encoded_noise(1, 24, 18, ".png"))
    config = SMALL.model_copy(update={"max_bad_fraction": 0.5})
    manifest = pack_shards(records, tmp_path / "set", config)
    assert manifest.skipped == {
        "image_missing": 1, "image_too_small": 1, "image_truncated": 1, "image_unreadable": 1,
    }  # fmt: skip
    assert {(s.key, s.reason) for s in manifest.skipped_samples} == {
        (records[0].key, "image_truncated"),
        (records[1].key, "image_unreadable"),
        (records[5].key, "image_too_small"),
        (records[6].key, "image_missing"),
    }
    assert manifest.repairs == {"mismatched_extension": 1}
    assert manifest.source_counts["train"] == 10
    assert manifest.counts["train"] == 6
    assert verify_shards(tmp_path / "set", decode=True).problems == ()


def test_too_many_bad_images_stop_the_packing_with_reasons_and_leave_no_set(
    tmp_path: Path, records: list[Record]
) -> None:
    records[0].path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 15 images are bad \(1 image_unreadable\).* 0\.01: train/train_0000_0"):
        pack_shards(records, tmp_path / "set", SMALL)
    assert not (tmp_path / "set").exists()


def test_a_vehicle_that_loses_all_its_images_has_no_label(tmp_path: Path, records: list[Record]) -> None:
    (only,) = [record for record in records if record.vehicle_id == "0003"]
    only.path.write_bytes(b"")
    manifest = pack_shards(records, tmp_path / "set", SMALL.model_copy(update={"max_bad_fraction": 0.5}))
    assert (manifest.labels, manifest.num_classes) == (("0000", "0001", "0002"), 3)


def test_a_missing_folder_of_images_is_reported_before_anything_is_packed(
    tmp_path: Path, records: list[Record]
) -> None:
    moved = [replace(record, path=tmp_path / "elsewhere" / record.path.name) for record in records]
    with pytest.raises(ValueError, match=r"15 of 15 image files cannot be found, the first is .*elsewhere"):
        pack_shards(moved, tmp_path / "set", SMALL)


@pytest.mark.parametrize("key", ["a.b", "", "a/b", "../a", "ä", "k" * 129])
def test_keys_that_tar_readers_would_split_are_refused(records: list[Record], key: str) -> None:
    with pytest.raises(ValueError, match="must match"):
        plan_shards([replace(records[0], key=key)], SMALL)


def test_a_key_twice_in_a_split_is_refused_and_in_two_splits_is_fine(tmp_path: Path, records: list[Record]) -> None:
    with pytest.raises(ValueError, match=r"1 keys occur more than once.*\('train', 'train_0000_0'\)"):
        plan_shards([*records, records[0]], SMALL)
    gallery_copy = [replace(record, split="gallery") for record in records if record.split == "query"]
    pack_shards([*records, *gallery_copy], tmp_path / "set", SMALL)
    assert verify_shards(tmp_path / "set").problems == ()


def test_a_vehicle_in_train_and_query_is_refused_unless_allowed(records: list[Record]) -> None:
    mixed = [replace(r, vehicle_id="0000") if r.split == "query" else r for r in records]
    with pytest.raises(ValueError, match="1 vehicles are in train and in an evaluation split, the first is '0000'"):
        plan_shards(mixed, SMALL)
    assert plan_shards(mixed, SMALL.model_copy(update={"allow_overlap": True})).tasks


def test_no_records_are_refused() -> None:
    with pytest.raises(ValueError, match="no records"):
        plan_shards([], SMALL)


def test_keypoints_are_cleaned_and_follow_a_smaller_image(tmp_path: Path) -> None:
    (record,) = draw_records(tmp_path / "raw", {"train": [1]}, masks=True)
    points = np.zeros((20, 3), dtype=np.float32)
    points[0] = (5.5, 8.5, 1)
    points[1] = (-1.5, 4, 1)
    points[2] = (90, 4, 1)
    config = SMALL.model_copy(update={"max_side": 12})
    manifest = pack_shards([replace(record, keypoints=points)], tmp_path / "set", config)
    assert manifest.repairs == {"keypoints_clipped": 1, "keypoints_outside": 1, "resized": 1}
    shards = open_shards(tmp_path / "set")
    expected = np.zeros((20, 3), dtype=np.float32)
    expected[0] = (2.5, 4.0, 1)
    expected[1] = (-0.25, 1.75, 1)
    np.testing.assert_array_equal(shards.index.keypoints[0], expected)
    assert (shards.index.width[0], shards.index.height[0]) == (12, 9)


def test_an_image_without_a_usable_mask_is_packed_without_it(tmp_path: Path, records: list[Record]) -> None:
    assert records[0].mask_path is not None
    records[0].mask_path.write_bytes(b"no image")
    manifest = pack_shards(records, tmp_path / "set", SMALL)
    assert manifest.repairs == {"mask_unreadable": 1}
    shards = open_shards(tmp_path / "set")
    (row,) = np.flatnonzero(shards.index.key == records[0].key)
    assert shards.read_mask(int(row)) is None
    without = pack_shards(records, tmp_path / "none", SMALL.model_copy(update={"masks": False}))
    assert (open_shards(tmp_path / "none").index.mask_size == -1).all()
    assert without.repairs == {}


class Interruption(Exception):  # noqa: N818
    """Stands for a killed process."""


def test_an_interrupted_packing_continues_with_the_shards_it_has(tmp_path: Path, records: list[Record]) -> None:
    def die_after_two(tasks: Sequence[ShardTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        for task in tasks[:2]:
            yield work(task, folder)
        raise Interruption

    with pytest.raises(Interruption):
        pack_shards(records, tmp_path / "set", SMALL, run_tasks=die_after_two)
    assert not (tmp_path / "set").exists(), "nothing is visible under the final name"
    kept: list[bool] = []
    manifest = pack_shards(
        records, tmp_path / "set", SMALL, progress=lambda done, total, result: kept.append(result.kept)
    )
    assert kept == [True, True, False, False, False]
    assert manifest == pack_shards(records, tmp_path / "undisturbed", SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "set", "undisturbed"]


def test_a_damaged_shard_of_an_interrupted_run_is_packed_again(tmp_path: Path, records: list[Record]) -> None:
    plan = plan_shards(records, SMALL)
    folder = open_location(tmp_path / "staging")
    task = plan.tasks[0]
    first = write_shard(task, folder, SMALL)
    assert write_shard(task, folder, SMALL).kept
    tar = tmp_path / "staging" / task.name
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    again = write_shard(task, folder, SMALL)
    assert not again.kept
    assert again.info == first.info


def test_a_changed_raw_image_makes_its_shard_and_only_its_shard_new(tmp_path: Path, records: list[Record]) -> None:
    before = {task.name: task.digest for task in plan_shards(records, SMALL).tasks}
    records[0].path.write_bytes(encoded_noise(99, 30, 30))
    after = {task.name: task.digest for task in plan_shards(records, SMALL).tasks}
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) == 1
    assert changed[0].startswith("train-")


def test_packing_again_finds_the_finished_set(tmp_path: Path, records: list[Record]) -> None:
    manifest = pack_shards(records, tmp_path / "set", SMALL)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    assert pack_shards(records, tmp_path / "set", SMALL) == manifest
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == times


def test_another_set_or_other_files_at_the_target_are_not_overwritten_unasked(
    tmp_path: Path, records: list[Record]
) -> None:
    first = pack_shards(records, tmp_path / "set", SMALL)
    fewer = [record for record in records if record.split == "train"]
    with pytest.raises(ValueError, match=f"holds another shard set .small, {first.hash[:16]}"):
        pack_shards(fewer, tmp_path / "set", SMALL)
    second = pack_shards(fewer, tmp_path / "set", SMALL, overwrite=True)
    assert open_shards(tmp_path / "set").manifest == second
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear diary")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds 1 other files"):
            pack_shards(fewer, tmp_path / "home", SMALL, overwrite=overwrite)
    assert content_of(tmp_path / "home") == {"diary.txt": b"dear diary"}


def test_a_set_whose_last_rename_was_lost_is_moved_into_place(tmp_path: Path, records: list[Record]) -> None:
    manifest = pack_shards(records, tmp_path / "set", SMALL)
    staging = tmp_path / f".tmp-set-{manifest.plan_digest[:16]}"
    (tmp_path / "set").rename(staging)

    def never(tasks: Sequence[ShardTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        raise AssertionError("everything was there")

    assert pack_shards(records, tmp_path / "set", SMALL, run_tasks=never) == manifest
    assert (tmp_path / "set" / MANIFEST_NAME).exists()


def test_the_order_in_which_shards_are_finished_changes_nothing(tmp_path: Path, records: list[Record]) -> None:
    def backwards(tasks: Sequence[ShardTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        return run_in_this_process(tasks[::-1], folder, work)

    one = pack_shards(records, tmp_path / "one", SMALL, run_tasks=backwards)
    assert one.hash == pack_shards(records, tmp_path / "two", SMALL).hash


def test_a_shard_that_was_written_where_nobody_else_sees_it_is_reported(tmp_path: Path, records: list[Record]) -> None:
    def elsewhere(tasks: Sequence[ShardTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        return run_in_this_process(tasks, open_location(tmp_path / "another-disk"), work)

    with pytest.raises(ValueError, match=r"has None bytes, expected .* storage that all packing processes share"):
        pack_shards(records, tmp_path / "set", SMALL, run_tasks=elsewhere)
