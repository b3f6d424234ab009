"""Plain shuffled images: each image once an epoch, the same batches and pixels for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.data.degradation import DegradationConfig
from reid.data.plan import ImagePlanConfig, image_table, lanes_of_worker, plan_epoch
from reid.data.stream import LoaderConfig, TrainStream
from reid.data.transforms import TransformConfig
from reid.data.warp import WarpConfig
from tests.unit.data.memory_source import MemorySource, make_source

PLAN = ImagePlanConfig(batch_size=12)
TRANSFORM = TransformConfig(
    height=16, width=16, padding=1, flip_probability=0.5, warp=WarpConfig(background="noise"),
    degradation=DegradationConfig(),
)  # fmt: skip


@pytest.fixture
def source() -> MemorySource:
    return make_source([3, 9, 5, 1, 8, 4, 13, 2, 7, 6, 1, 1, 9], num_gallery=2)


def annotated(source: MemorySource) -> np.ndarray:
    rows = source.index.rows("train")
    return rows[source.index.has_keypoints[rows]]


def stream_of(source: MemorySource, worker: int = 0, num_workers: int = 1, **loader: object) -> TrainStream:
    config = LoaderConfig.model_validate({"max_bad_fraction": 0.2, **loader})
    return TrainStream(
        source, PLAN, TRANSFORM, config, seed=3, worker=worker, num_workers=num_workers, rows=annotated(source)
    )


def global_batches(source: MemorySource, num_workers: int, epoch: int = 1, **loader: object) -> list[tuple]:
    streams = [stream_of(source, worker, num_workers, **loader) for worker in range(num_workers)]
    parts = [list(stream.batches(epoch)) for stream in streams]
    for stream in streams:
        stream.close()
    return [
        tuple(torch.cat([getattr(part, name) for part in step]) for name in ("samples", "images", "keypoints"))
        for step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize(("num_images", "batch_size"), [(12, 12), (13, 12), (200, 32), (97, 7)])
def test_every_image_is_shown_once_and_only_the_last_places_are_filled_up(num_images: int, batch_size: int) -> None:
    rows = np.arange(1000, 1000 + num_images)
    config = ImagePlanConfig(batch_size=batch_size)
    table = image_table(rows, rows // 40, config)
    orders = []
    for epoch in range(3):
        plan = plan_epoch(table, config.as_identities(), seed=0, epoch=epoch)
        assert plan.shape[1:] == (batch_size, 1)
        counts = np.bincount(plan.ravel() - 1000, minlength=num_images)
        assert counts.min() == 1
        assert plan.size - num_images < 2 * batch_size
        assert all(len(set(step.ravel().tolist())) == batch_size for step in plan)
        orders.append(plan.ravel().tolist())
    assert orders[0] != orders[1] != orders[2]


def test_batches_mix_identities_of_a_shard(source: MemorySource) -> None:
    labels = [source.index.label[samples.numpy()] for samples, *_ in global_batches(source, 1)]
    assert all(len(set(batch.tolist())) > 3 for batch in labels)


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_batches_and_pixels_are_the_same_for_any_number_of_workers(source: MemorySource, num_workers: int) -> None:
    source.files[int(annotated(source)[7])] = b"damaged"
    expected, actual = global_batches(source, 1), global_batches(source, num_workers)
    assert len(expected) >= 4
    for one, other in zip(expected, actual, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_resumed_epoch_goes_on_with_the_remaining_batches(source: MemorySource) -> None:
    stream = stream_of(source)
    expected = [batch.images for batch in stream.batches(2)]
    actual = [batch.images for batch in stream.batches(2, start_step=3)]
    assert len(actual) == len(expected) - 3 > 0
    assert all(torch.equal(a, b) for a, b in zip(actual, expected[3:], strict=True))


def test_images_that_nobody_annotated_are_never_shown_not_even_in_place_of_a_bad_one(source: MemorySource) -> None:
    bad = annotated(source)[[3, 4, 20]].tolist()
    for row in bad:
        source.files[row] = b"damaged"
    shown = torch.cat([samples for epoch in range(3) for samples, *_ in global_batches(source, 1, epoch)])
    assert set(shown.tolist()) == set(annotated(source).tolist()) - set(bad)
    assert not source.index.has_keypoints.all()


def test_a_batch_that_cannot_be_shared_or_filled_is_refused() -> None:
    with pytest.raises(ValueError, match="global batch 12 images is not divisible by 5 workers"):
        lanes_of_worker(PLAN, 0, 5)
    assert lanes_of_worker(PLAN, 1, 3) == range(4, 8)
    with pytest.raises(ValueError, match="a batch needs 12 images, there are 5"):
        image_table(np.arange(5), np.zeros(5, dtype=np.int64), PLAN)
