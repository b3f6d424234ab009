"""Enrichment: a new complete set, the same for any number of processes and after a kill, and an untouched source."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import signal
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest

from reid import storage
from reid.contracts import DataError
from reid.data.decode import decode_mask
from reid.data.enriched_shard import EnrichTask
from reid.data.enrichment import enrich_shards
from reid.data.manifest import MANIFEST_NAME, manifest_to_json
from reid.data.plan import PlanConfig
from reid.data.shard_set import open_shards
from reid.data.shards import ShardResult, pack_shards
from reid.data.staging import ShardWork, run_in_this_process
from reid.data.stream import LoaderConfig, TrainStream
from reid.data.transforms import TransformConfig
from reid.data.verify import verify_shards
from reid.storage import Location
from tests.unit.data.enrichments import Detected, Nothing, Painted
from tests.unit.data.raw_images import SMALL, draw_records
from tests.unit.data.test_shards import content_of, read_with_webdataset
from tests.unit.data.test_verify import Payload, add_member


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pack_shards(draw_records(tmp_path / "raw"), tmp_path / "source", SMALL)
    return tmp_path / "source"


def test_the_new_set_is_whole_and_holds_the_old_one_and_the_masks(tmp_path: Path, source: Path) -> None:
    before = content_of(source)
    manifest = enrich_shards(source, tmp_path / "target", Painted())
    assert content_of(source) == before
    assert verify_shards(tmp_path / "target", decode=True).problems == ()
    with open_shards(source) as old, open_shards(tmp_path / "target") as new:
        assert len(new) == len(old) == 15
        columns = {"key", "split", "vehicle_id", "label", "shard", "camera_id", "keypoints", "has_keypoints", "width"}
        for name in columns:
            np.testing.assert_array_equal(new.index.columns()[name], old.index.columns()[name], err_msg=name)
        for row in range(len(old)):
            assert new.read_image(row) == old.read_image(row)
            mask = new.read_mask(row)
            assert mask is not None
            assert decode_mask(mask).shape == (18, 24)
        assert new.manifest.labels == old.manifest.labels
        (addition,) = manifest.additions
        assert (addition.name, addition.version, addition.source_hash) == ("painted", "1", old.manifest.hash)
        assert addition.settings == {"shade": 255, "without": ""}
        assert addition.members == {"mask.png": 15}
        flagged = sum("painted:thin_paint" in flags for flags in new.index.flags) if new.index.flags is not None else 0
        assert addition.problems == {"thin_paint": flagged}
        assert 0 < flagged < 15
        assert 0 < addition.means["paint"] < 1


def test_any_webdataset_reader_sees_the_additions(tmp_path: Path, source: Path) -> None:
    manifest = enrich_shards(source, tmp_path / "masks", Painted())
    manifest = enrich_shards(tmp_path / "masks", tmp_path / "all", Detected())
    assert verify_shards(tmp_path / "all", decode=True).problems == ()
    assert [addition.name for addition in manifest.additions] == ["painted", "detected"]
    assert manifest.additions[1].members == {"keypoints": 15, "boxes.json": 15}
    samples = {
        sample["__key__"]: sample
        for sample in read_with_webdataset([str(tmp_path / "all" / shard.name) for shard in manifest.shards])
    }
    shards = open_shards(tmp_path / "all")
    index = shards.index
    assert index.keypoint_scores is not None
    assert index.boxes is not None
    assert index.boxes.shape == (15, 3, 4)
    assert index.has_keypoints.all()
    for row, key in enumerate(index.key):
        sample = samples[key]
        assert sample["mask.png"] == shards.read_mask(row)
        np.testing.assert_array_equal(np.float32(sample["json"]["keypoints"]), index.keypoints[row])
        np.testing.assert_array_equal(np.float32(sample["json"]["keypoint_scores"]), index.keypoint_scores[row])
        np.testing.assert_array_equal(np.float32(json.loads(sample["boxes.json"])), index.boxes[row])
        assert tuple(sample["json"].get("flags", ())) == (() if index.flags is None else index.flags[row])


def test_an_addition_of_the_same_name_replaces_the_old_one_and_its_flags(tmp_path: Path, source: Path) -> None:
    enrich_shards(source, tmp_path / "one", Painted())
    again = enrich_shards(tmp_path / "one", tmp_path / "two", Painted(shade=200))
    direct = enrich_shards(source, tmp_path / "direct", Painted(shade=200))
    assert again.shards == direct.shards
    assert again.index.content_sha256 == direct.index.content_sha256
    assert again.hash != direct.hash, "the manifest tells what happened"


def test_an_image_that_is_given_nothing_is_counted_and_flagged(tmp_path: Path, source: Path) -> None:
    manifest = enrich_shards(source, tmp_path / "target", Painted(without="train_0000_1"))
    assert manifest.additions[0].members == {"mask.png": 14}
    assert manifest.additions[0].problems["no_paint"] == 1
    shards = open_shards(tmp_path / "target")
    (row,) = np.flatnonzero(shards.index.key == "train_0000_1")
    assert shards.read_mask(int(row)) is None
    assert shards.index.flags is not None
    assert shards.index.flags[row] == ("painted:no_paint",)
    assert verify_shards(tmp_path / "target", decode=True).problems == ()


def test_an_enriched_set_trains_with_masks_and_the_source_does_not(tmp_path: Path, source: Path) -> None:
    enrich_shards(source, tmp_path / "target", Painted())
    plan = PlanConfig(identities_per_batch=2, images_per_identity=2)
    transform = TransformConfig(height=16, width=16, padding=0)

    def stream(folder: Path) -> TrainStream:
        return TrainStream(open_shards(folder), plan, transform, LoaderConfig(masks=True), seed=0)

    with pytest.raises(ValueError, match="masks are asked for, but 10 of 10 images have none"):
        stream(source)
    batches = list(stream(tmp_path / "target").batches(0))
    assert batches
    assert all(batch.masks is not None and batch.masks.any() for batch in batches)


def test_enriching_again_finds_the_finished_set(tmp_path: Path, source: Path) -> None:
    manifest = enrich_shards(source, tmp_path / "target", Painted())
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "target").iterdir()}

    def never(tasks: Sequence[EnrichTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        raise AssertionError("everything was there")

    assert enrich_shards(source, tmp_path / "target", Painted(), run_tasks=never) == manifest
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "target").iterdir()} == times


def test_other_settings_are_another_set(tmp_path: Path, source: Path) -> None:
    first = enrich_shards(source, tmp_path / "target", Painted())
    with pytest.raises(ValueError, match=f"holds another shard set .small, {first.hash[:16]}"):
        enrich_shards(source, tmp_path / "target", Painted(shade=200))
    second = enrich_shards(source, tmp_path / "target", Painted(shade=200), overwrite=True)
    assert second.hash != first.hash
    assert open_shards(tmp_path / "target").manifest == second


def run_in_processes(tasks: Sequence[EnrichTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
        yield from pool.map(work, tasks, repeat(folder))


def test_the_set_is_the_same_in_any_order_and_for_any_number_of_processes(tmp_path: Path, source: Path) -> None:
    def backwards(tasks: Sequence[EnrichTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        return run_in_this_process(tasks[::-1], folder, work)

    expected = enrich_shards(source, tmp_path / "one", Painted())
    assert enrich_shards(source, tmp_path / "backwards", Painted(), run_tasks=backwards) == expected
    assert enrich_shards(source, tmp_path / "processes", Painted(), run_tasks=run_in_processes) == expected
    assert content_of(tmp_path / "backwards") == content_of(tmp_path / "one")
    assert content_of(tmp_path / "processes") == content_of(tmp_path / "one")


def test_a_killed_run_continues_with_the_shards_it_has(tmp_path: Path, source: Path) -> None:
    last = str(open_shards(source).index.key[-1])
    victim = multiprocessing.get_context("forkserver").Process(
        target=enrich_shards, args=(source, tmp_path / "target", Painted(kill_at=last))
    )
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert not (tmp_path / "target").exists(), "nothing is visible under the final name"
    kept: list[bool] = []
    manifest = enrich_shards(
        source, tmp_path / "target", Painted(), progress=lambda done, total, result: kept.append(result.kept)
    )
    assert kept == [True, True, True, True, False]
    assert manifest == enrich_shards(source, tmp_path / "undisturbed", Painted())
    assert content_of(tmp_path / "target") == content_of(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "source", "target", "undisturbed"]


def test_shards_of_other_settings_are_not_kept(tmp_path: Path, source: Path) -> None:
    shards = open_shards(source)
    folder = storage.open_location(tmp_path / "staging")
    kept = []

    def run(tasks: Sequence[EnrichTask], _: Location, work: ShardWork) -> Iterator[ShardResult]:
        for task in tasks:
            result = work(task, folder)
            kept.append(result.kept)
            yield result

    for enrichment in (Painted(), Painted(), Painted(shade=200)):
        with pytest.raises(ValueError, match="storage that all packing processes share"):
            enrich_shards(source, tmp_path / "target", enrichment, run_tasks=run)
    count = len(shards.manifest.shards)
    assert kept == [False] * count + [True] * count + [False] * count


@pytest.mark.parametrize("inside", ["", "masks", "a/b"])
def test_the_source_cannot_be_the_target(source: Path, inside: str) -> None:
    before = content_of(source)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is the source or inside it"):
            enrich_shards(source, source / inside, Painted(), overwrite=overwrite)
    assert content_of(source) == before


def test_a_source_that_is_not_whole_is_refused_with_the_shard(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DataError, match="is not a shard set"):
        enrich_shards(tmp_path / "nothing", tmp_path / "target", Painted())
    tar = source / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"train-000001\.tar is damaged"):
        enrich_shards(source, tmp_path / "target", Painted())
    tar.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar is missing"):
        enrich_shards(source, tmp_path / "target", Painted())
    assert not (tmp_path / "target").exists()


def test_a_pickled_member_is_refused_and_not_executed(tmp_path: Path, source: Path) -> None:
    witness = tmp_path / "witness"
    add_member(source, tarfile.TarInfo("evil.pkl"), pickle.dumps(Payload(witness)))
    with pytest.raises(DataError, match=r"train-000000\.tar: unsafe_member: 'evil\.pkl'"):
        enrich_shards(source, tmp_path / "target", Painted())
    assert not witness.exists()


def test_a_shard_that_is_not_what_its_index_says_is_refused(tmp_path: Path, source: Path) -> None:
    def shifted(tasks: Sequence[EnrichTask], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        rows = replace(tasks[0].rows, image_offset=tasks[0].rows.image_offset + 512)
        return run_in_this_process([replace(tasks[0], rows=rows)], folder, work)

    with pytest.raises(DataError, match="is not where the index says"):
        enrich_shards(source, tmp_path / "target", Painted(), run_tasks=shifted)


def test_an_enrichment_that_gives_nothing_makes_no_set(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing gave none of 15 images anything \(15 dark\)"):
        enrich_shards(source, tmp_path / "target", Nothing())
    assert not (tmp_path / "target").exists()


def test_packed_sets_keep_the_schema_that_older_programs_read(tmp_path: Path, source: Path) -> None:
    packed = json.loads((source / MANIFEST_NAME).read_bytes())
    assert packed["schema_version"] == 1
    assert "additions" not in packed
    manifest = enrich_shards(source, tmp_path / "target", Painted())
    enriched = json.loads(manifest_to_json(manifest))
    assert enriched["schema_version"] == 2
    assert enriched["additions"][0]["name"] == "painted"
