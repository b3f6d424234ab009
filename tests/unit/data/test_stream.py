"""The stream: the same batches for every number of workers and loader processes, from any step on."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.contracts import DataError, Record
from reid.data.decode import UnreadableImageError, decode_image
from reid.data.loader import SkippedImage
from reid.data.plan import PlanConfig, identity_table, plan_epoch
from reid.data.shard_plan import PackConfig
from reid.data.shard_set import open_shards
from reid.data.shards import pack_shards
from reid.data.stream import EvalStream, LoaderConfig, TrainStream
from reid.data.transforms import EvalTransform
from tests.unit.data.memory_source import MemorySource, encode, make_source
from tests.unit.data.small_stream import PLAN, TRANSFORM, VEHICLES, everything, stream_of

WORLDS = (1, 2, 3, 4, 6, 12)
UNCHANGED = {
    "padding": 0,
    "flip_probability": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "erasing_probability": 0.0,
    "occlusion_probability": 0.0,
}


@pytest.fixture
def source() -> MemorySource:
    return make_source(VEHICLES, masks=True, num_gallery=5)


def global_sequence(source: MemorySource, processes: int, world: int) -> list[bytes]:
    parts = []
    for worker in range(world):
        # forked: 112 processes that would each import this program anew are not what is tested here
        stream = stream_of(source, processes, worker, world, start_method="fork")
        parts.append(list(stream.batches(0)))
        stream.close()
    return [everything(step) for step in zip(*parts, strict=True)]


def test_worlds_and_loader_processes_see_one_global_sequence(source: MemorySource) -> None:
    expected = global_sequence(source, processes=0, world=1)
    assert len(expected) >= 3
    assert len(set(expected)) == len(expected)
    for processes in (0, 1, 3):
        for world in WORLDS:
            assert global_sequence(source, processes, world) == expected, f"{processes} processes, {world} workers"


def test_batches_follow_the_plan(source: MemorySource) -> None:
    rows = source.index.rows("train")
    table = identity_table(rows, source.index.label[rows], source.index.shard[rows].astype(np.int64), PLAN)
    plan = plan_epoch(table, PLAN, seed=3, epoch=1)
    stream = stream_of(source)
    batches = list(stream.batches(1))
    assert stream.steps_in_epoch(1) == len(plan) == len(batches)
    for batch, expected in zip(batches, plan.reshape(len(plan), -1), strict=True):
        assert batch.samples.tolist() == expected.tolist()
        assert batch.labels.tolist() == source.index.label[expected].tolist()
        assert batch.images.shape == (36, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
    assert stream.exposure(1).min_visits == 1


def test_pixels_of_a_batch_are_laid_out_channels_last(source: MemorySource) -> None:
    batch = next(stream_of(source).batches(0))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.to(torch.device("cpu")).images.data_ptr() == batch.images.data_ptr()


@pytest.mark.parametrize("processes", [0, 1])
def test_resuming_after_any_step_gives_exactly_the_rest(source: MemorySource, processes: int) -> None:
    stream = stream_of(source, processes)
    whole = [everything([batch]) for batch in stream.batches(2)]
    for step in range(len(whole) + 1):
        fresh = stream_of(source) if processes == 0 else stream
        assert [everything([batch]) for batch in fresh.batches(2, start_step=step)] == whole[step:]
    stream.close()


def test_the_first_batch_costs_the_same_reads_at_every_step(source: MemorySource) -> None:
    steps = stream_of(source).steps_in_epoch(0)
    for step in range(steps):
        source.reads.clear()
        stream = stream_of(source, prefetch_batches=1)
        batches = stream.batches(0, start_step=step)
        first = next(batches)
        batches.close()
        assert source.reads[:36] == first.samples.tolist()
        assert len(source.reads) in (36, 72)  # and at most the one batch that is made ahead


def test_an_iteration_can_be_left_and_begun_again(source: MemorySource) -> None:
    for processes in (0, 2):
        stream = stream_of(source, processes)
        begun = stream.batches(0)
        first = next(begun)
        begun.close()
        again = list(stream.batches(0))
        assert everything([again[0]]) == everything([first])
        assert len(again) == stream.steps_in_epoch(0)
        stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "batch-loader"]


def test_a_step_beyond_the_epoch_is_refused(source: MemorySource) -> None:
    stream = stream_of(source)
    steps = stream.steps_in_epoch(0)
    with pytest.raises(ValueError, match=f"step {steps + 1} of epoch 0: expected 0 to {steps}"):
        next(stream.batches(0, start_step=steps + 1))


@pytest.mark.parametrize(("processes", "num_workers"), [(0, 1), (0, 3), (2, 1)])
def test_an_unreadable_image_is_replaced_within_its_identity(
    source: MemorySource, processes: int, num_workers: int
) -> None:
    bad = {3: b"<html>", 5: source.files[5][:-20], 40: encode(np.zeros((3, 3, 3), dtype=np.uint8))}
    for row, data in bad.items():
        source.files[row] = data
    reasons = {"image_unreadable": 3, "image_truncated": 5, "image_size_differs": 40}
    parts, skipped = [], dict.fromkeys(reasons, 0)
    for worker in range(num_workers):
        stream = stream_of(source, processes, worker, num_workers, max_bad_fraction=0.05)
        parts.append(list(stream.batches(0)))
        for reason in reasons:
            skipped[reason] += stream.skipped[reason]
        stream.close()
    shown = torch.stack([torch.cat([batch.samples for batch in step]) for step in zip(*parts, strict=True)])
    assert not set(bad) & set(shown.flatten().tolist())

    rows = source.index.rows("train")
    table = identity_table(rows, source.index.label[rows], source.index.shard[rows].astype(np.int64), PLAN)
    plan = plan_epoch(table, PLAN, seed=3, epoch=0).reshape(shown.shape)
    np.testing.assert_array_equal(source.index.label[shown], source.index.label[plan])
    replaced = np.isin(plan, list(bad))
    np.testing.assert_array_equal(shown.numpy()[~replaced], plan[~replaced])
    for reason, row in reasons.items():
        assert skipped[reason] == (plan == row).sum() > 0
    # rows 3 and 5 belong to a vehicle of 9: no image twice in a visit
    visits = shown.reshape(len(shown), 12, 3).numpy()
    large = visits[np.isin(source.index.label[visits[..., 0]], source.index.label[[3]])]
    assert len(large) >= 3
    assert all(len(set(visit.tolist())) == 3 for visit in large)


def test_too_many_unreadable_images_stop_the_run(source: MemorySource) -> None:
    for row in (3, 4, 14, 20):
        source.files[row] = b"damaged"
    stream = stream_of(source, max_bad_fraction=0.03)
    expected = r"4 of 103 training images are unreadable, more than max_bad_fraction 0.03 .*image-000.*damaged"
    with pytest.raises(DataError, match=expected):
        list(stream.batches(0))


def test_bad_images_that_all_fall_to_one_worker_are_still_a_share_of_the_whole_set(source: MemorySource) -> None:
    for row in (3, 4, 5):  # of one vehicle: 3 of 103 in all, 9 % of the third that one worker reads
        source.files[row] = b"damaged"
    streams = [stream_of(source, worker=worker, num_workers=3, max_bad_fraction=0.03) for worker in range(3)]
    assert all(list(stream.batches(0)) for stream in streams)
    assert sorted(len(stream._bad_rows) for stream in streams) == [0, 0, 3]


@pytest.mark.parametrize("processes", [0, 1])
def test_an_identity_without_a_readable_image_stops_the_run(source: MemorySource, processes: int) -> None:
    alone = int(np.flatnonzero(source.index.vehicle_id == "0003")[0])
    source.files[alone] = b""
    stream = stream_of(source, processes, max_bad_fraction=1.0)
    with pytest.raises(DataError, match=r"none of the 1 training images of vehicle '0003' can be read .*0 bytes"):
        list(stream.batches(0))
    stream.close()


def test_ten_thousand_unreadable_images_make_few_lines_of_log(
    source: MemorySource, caplog: pytest.LogCaptureFixture
) -> None:
    image = SkippedImage(4, "image_unreadable", "image 'image-00004': damaged")
    stream = stream_of(source, max_bad_fraction=1.0)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(10_000):
            stream._count(image)
    assert stream.skipped == {"image_unreadable": 10_000}
    assert len(caplog.records) <= 20
    assert "unreadable training image, 1 so far: row 4, image 'image-00004': damaged" in caplog.text
    assert "9001 so far" in caplog.text


def test_short_identities_are_announced_by_the_first_worker_only(
    source: MemorySource, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for worker in range(3):
            stream_of(source, worker=worker, num_workers=3)
    assert [record.getMessage() for record in caplog.records] == [
        "4 of 20 identities have fewer than 3 images and repeat them within a batch"
    ]


@pytest.mark.parametrize("processes", [0, 2])
def test_test_images_come_once_each_in_the_given_order(source: MemorySource, processes: int) -> None:
    rows = source.index.rows("gallery")[::-1]
    config = LoaderConfig(processes=processes, masks=True)
    stream = EvalStream(source, rows, TRANSFORM, config, batch_size=2)
    batches = list(stream)
    assert len(stream) == 3
    assert [len(batch.samples) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.samples for batch in batches]).tolist() == rows.tolist()
    assert set(torch.cat([batch.labels for batch in batches]).tolist()) == {-1}
    raw_sizes = np.stack((source.index.height[rows], source.index.width[rows]), axis=1)
    expected = EvalTransform(TRANSFORM).keypoints(source.index.keypoints[rows], raw_sizes)
    np.testing.assert_array_equal(torch.cat([batch.keypoints for batch in batches]), expected)
    assert expected[..., 2].sum() > 0
    again = [everything([batch]) for batch in stream]
    assert again == [everything([batch]) for batch in batches]
    stream.close()


@pytest.mark.parametrize("processes", [0, 1])
def test_an_unreadable_test_image_is_an_error_with_its_name(source: MemorySource, processes: int) -> None:
    row = int(source.index.rows("gallery")[1])
    source.files[row] = b"damaged"
    stream = EvalStream(source, source.index.rows("gallery"), TRANSFORM, LoaderConfig(processes=processes), 2)
    with pytest.raises(UnreadableImageError, match=f"image_unreadable: image 'image-{row:05d}'"):
        list(stream)
    stream.close()


def test_images_without_annotation_have_no_visible_keypoint(source: MemorySource) -> None:
    batch = next(stream_of(source).batches(0))
    annotated = torch.from_numpy(source.index.has_keypoints[batch.samples])
    assert 0 < annotated.sum() < len(annotated)
    assert not batch.keypoints[~annotated].any()
    assert batch.keypoints[annotated][..., 2].any()


def test_masks_that_are_not_there_are_refused() -> None:
    source = make_source([4, 5])
    plan = PlanConfig(identities_per_batch=2)
    with pytest.raises(ValueError, match="masks are asked for, but 9 of 9 images have none"):
        TrainStream(source, plan, TRANSFORM, LoaderConfig(masks=True), seed=0)
    batch = next(TrainStream(source, plan, TRANSFORM, LoaderConfig(), seed=0).batches(0))
    assert batch.masks is None


def test_what_cannot_be_streamed_is_refused(source: MemorySource) -> None:
    with pytest.raises(ValueError, match="seed -1"):
        TrainStream(source, PLAN, TRANSFORM, LoaderConfig(), seed=-1)
    with pytest.raises(ValueError, match="36 = 12 identities x 3 images is not divisible by 5 workers"):
        stream_of(source, num_workers=5)
    with pytest.raises(ValueError, match="batch_size 0"):
        EvalStream(source, [0], TRANSFORM, LoaderConfig(), 0)


def test_a_reader_that_fails_for_another_reason_is_not_hidden(source: MemorySource) -> None:
    class Broken(MemorySource):
        def read_image(self, row: int) -> bytes:
            raise OSError("disk gone")

    broken = Broken(source.index, source.files, source.masks)
    stream = TrainStream(broken, PLAN, TRANSFORM, LoaderConfig(), seed=0)
    with pytest.raises(OSError, match="disk gone"):
        next(stream.batches(0))


def test_shards_on_disk_give_the_batches_of_the_images_they_were_made_of(source: MemorySource, tmp_path: Path) -> None:
    records = []
    for row, data in enumerate(source.files):
        path = tmp_path / f"{source.index.key[row]}.jpg"
        path.write_bytes(data)
        keypoints = source.index.keypoints[row] if source.index.has_keypoints[row] else None
        records.append(
            Record(
                key=source.index.key[row],
                path=path,
                split=source.index.split[row],
                vehicle_id=source.index.vehicle_id[row],
                keypoints=keypoints,
            )
        )
    config = PackConfig(min_side=4, min_train_shards=3, min_evaluation_shards=1, allow_overlap=True)
    pack_shards(records, tmp_path / "shards", config)
    row_of_key = {key: row for row, key in enumerate(source.index.key.tolist())}
    transform = EvalTransform(TRANSFORM)
    plain = TRANSFORM.model_copy(update=UNCHANGED)
    with open_shards(tmp_path / "shards") as shards:
        stream = TrainStream(shards, PLAN, plain, LoaderConfig(processes=1), seed=3)
        batch = next(stream.batches(0))
        stream.close()
        for place, sample in enumerate(batch.samples.tolist()):
            row = row_of_key[shards.index.key[sample]]
            assert batch.labels[place] == source.index.label[row]
            raw = decode_image(source.files[row])
            expected = transform.image(raw, np.empty((16, 16, 3), dtype=np.uint8))
            np.testing.assert_array_equal(batch.images[place].permute(1, 2, 0).numpy(), expected)
