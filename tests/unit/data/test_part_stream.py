"""Part boxes in batches: they move as painted boxes move; images without any get stripes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.data.decode import UnreadableImageError
from reid.data.stored_parts import has_part_boxes
from reid.data.stream import EvalStream, LoaderConfig, TrainStream
from reid.data.transforms import TrainTransform, TransformConfig, draw_augmentation
from reid.data.warp import WarpConfig
from reid.parts import uniform_stripes
from tests.unit.data.memory_source import MemorySource, make_source
from tests.unit.data.small_stream import PLAN, TRANSFORM, VEHICLES


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), padding=st.integers(0, 9))
def test_boxes_move_as_masks_painted_with_them(seed: int, padding: int) -> None:
    config = TransformConfig(height=40, width=60, padding=padding, flip_probability=0.5)
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, (61, 41), (4, 2, 2)), axis=1)  # (image, low and high, x and y) in raw pixels
    corners[:, 0] = np.minimum(corners[:, 0], (59, 39))  # at least a pixel of every box lies in the image
    corners[:, 1] = np.maximum(corners[:, 1], corners[:, 0] + 1)
    boxes = np.concatenate((corners[:, 0], corners[:, 1]), axis=1)[:, None] / (60, 40, 60, 40)
    augmentation = draw_augmentation(config, seed=seed, epoch=0, step=0, num_images=4)
    transform = TrainTransform(config)
    moved = transform.boxes(boxes, augmentation, np.arange(4))[:, 0] * (60, 40, 60, 40)
    for slot, ((left, top), (right, bottom)) in enumerate(corners.tolist()):
        painted = np.zeros((40, 60), dtype=np.uint8)
        painted[top:bottom, left:right] = 1
        mask = transform.mask(painted, augmentation, slot, np.empty((40, 60), dtype=np.uint8))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):  # cropped away
            assert moved[slot, 0] == pytest.approx(moved[slot, 2]) or moved[slot, 1] == pytest.approx(moved[slot, 3])
            continue
        expected = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(moved[slot], expected, atol=1e-4)


@pytest.fixture
def source() -> MemorySource:
    return make_source(VEHICLES, masks=True, num_gallery=5)


def with_boxes(source: MemorySource, missing: tuple[int, ...] = ()) -> MemorySource:
    """The source with two boxes of its own for each image but the missing ones."""
    count = len(source.index)
    share = np.arange(count, dtype=np.float32)[:, None] / (2 * count)
    box = np.concatenate((share, share, share + 0.5, share + 0.5), axis=1)
    boxes = np.stack((box, box * np.float32(0.5)), axis=1)
    boxes[list(missing)] = 0
    return MemorySource(replace(source.index, boxes=boxes), source.files, source.masks)


def test_test_images_get_their_boxes_or_stripes_and_a_mask_of_ones(source: MemorySource) -> None:
    without_mask = MemorySource(source.index, source.files, [None, *source.masks[1:]])
    boxed = with_boxes(without_mask, missing=(0, 3))
    rows = np.arange(6)
    (batch,) = EvalStream(boxed, rows, TRANSFORM, LoaderConfig(), batch_size=6, num_parts=2)
    assert batch.boxes is not None
    assert batch.masks is not None
    stripes = torch.from_numpy(uniform_stripes(2))
    for row in range(6):
        expected = stripes if row in (0, 3) else torch.from_numpy(boxed.index.boxes[row])
        assert torch.equal(batch.boxes[row], expected)
    assert batch.masks[0].min() == 1
    assert 0 < batch.masks[1].float().mean() < 1
    assert has_part_boxes(boxed.index, rows).tolist() == [False, True, True, False, True, True]
    (bare,) = EvalStream(source, rows, TRANSFORM, LoaderConfig(), batch_size=6, num_parts=4)
    assert bare.boxes is not None
    assert torch.equal(bare.boxes, torch.from_numpy(uniform_stripes(4)).expand(6, 4, 4))


@pytest.mark.parametrize("processes", [0, 1])
def test_training_batches_carry_the_boxes_of_their_images(source: MemorySource, processes: int) -> None:
    boxed = with_boxes(source)
    unmoved = TRANSFORM.model_copy(update={"padding": 0, "flip_probability": 0.0, "warp": None})
    config = LoaderConfig(processes=processes, start_method="fork")
    stream = TrainStream(boxed, PLAN, unmoved, config, seed=0, num_parts=2)
    batch = next(iter(stream.batches(0)))
    stream.close()
    assert batch.boxes is not None
    assert boxed.index.boxes is not None
    np.testing.assert_array_equal(batch.boxes.numpy(), boxed.index.boxes[batch.samples.numpy()])
    moved = batch.to(torch.device("cpu"))
    assert moved.boxes is not None


def test_workers_get_the_boxes_of_their_own_slots(source: MemorySource) -> None:
    boxed = with_boxes(source)
    config = TRANSFORM.model_copy(update={"warp": None})

    def boxes_of(worker: int, num_workers: int) -> torch.Tensor:
        stream = TrainStream(
            boxed, PLAN, config, LoaderConfig(), seed=0, worker=worker, num_workers=num_workers, num_parts=2
        )
        batch = next(iter(stream.batches(0)))
        stream.close()
        assert batch.boxes is not None
        return batch.boxes

    whole = boxes_of(0, 1)
    assert torch.equal(torch.cat([boxes_of(0, 2), boxes_of(1, 2)]), whole)
    assert not torch.equal(whole, boxes_of(0, 1).flip(0))


def test_an_image_whose_mask_cannot_be_read_is_replaced_and_counted(source: MemorySource) -> None:
    masks = [data if row else b"no mask" for row, data in enumerate(source.masks)]
    broken = MemorySource(source.index, source.files, masks)
    stream = TrainStream(broken, PLAN, TRANSFORM, LoaderConfig(masks=True, max_bad_fraction=0.5), seed=0)
    rows = torch.cat([batch.samples for batch in stream.batches(0)])
    stream.close()
    assert 0 not in rows
    assert stream.skipped["image_unreadable"] > 0
    with pytest.raises(UnreadableImageError, match="mask of 'image-00000'"):
        list(EvalStream(broken, np.arange(1), TRANSFORM, LoaderConfig(masks=True), batch_size=1))


def test_a_batch_of_one_image_can_be_written_to(source: MemorySource) -> None:
    (batch,) = EvalStream(source, np.arange(1), TRANSFORM, LoaderConfig(), batch_size=1, num_parts=3)
    assert batch.boxes is not None
    batch.boxes.add_(1)


def test_what_cannot_be_is_refused(source: MemorySource) -> None:
    boxed = with_boxes(source)
    with pytest.raises(ValueError, match=r"3 parts are asked for, but the shards hold 2 .* parts\.num_parts=3"):
        TrainStream(boxed, PLAN, TRANSFORM, LoaderConfig(), seed=0, num_parts=3)
    with pytest.raises(ValueError, match="hold 2 boxes"):
        EvalStream(boxed, np.arange(3), TRANSFORM, LoaderConfig(), batch_size=2, num_parts=1)
    turning = TRANSFORM.model_copy(update={"warp": WarpConfig()})
    with pytest.raises(ValueError, match="part boxes cannot be turned"):
        TrainStream(boxed, PLAN, turning, LoaderConfig(), seed=0, num_parts=2)
