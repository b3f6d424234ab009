"""Pasted vehicles: pixel by pixel, the same for any number of workers and from any step on, and only for masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from reid.contracts import Batch
from reid.data.pasting import PasteConfig, draw_pastes, paste
from reid.data.plan import PlanConfig, plan_epoch
from reid.data.resizing import resize_image, resize_mask
from reid.data.stream import LoaderConfig, TrainStream
from tests.unit.data.memory_source import MemorySource, make_source
from tests.unit.data.small_stream import PLAN, TRANSFORM, VEHICLES, everything

PASTING = TRANSFORM.model_copy(update={"paste": PasteConfig()})


def _paste_slowly(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    other: NDArray[np.uint8],
    outline: NDArray[np.uint8],
    fractions: list[float],
    config: PasteConfig,
) -> None:
    """One pixel after the other."""
    _, front, scale, angle, distance, mirror = fractions
    height, width = mask.shape
    size = config.scale[0] + scale * (config.scale[1] - config.scale[0])
    sizes = (max(1, round(height * size)), max(1, round(width * size)))
    pixels = resize_image_to(other, sizes)
    shape = np.empty(sizes, np.uint8)
    resize_mask(outline, shape)
    if mirror < 0.5:
        pixels, shape = np.flip(pixels, 1), np.flip(shape, 1)
    inside = [(y, x) for y in range(sizes[0]) for x in range(sizes[1]) if shape[y, x]]
    if not inside:
        return
    centre_y = (min(y for y, _ in inside) + max(y for y, _ in inside) + 1) / 2
    centre_x = (min(x for _, x in inside) + max(x for _, x in inside) + 1) / 2
    away = config.distance[0] + distance * (config.distance[1] - config.distance[0])
    top = round(height * (0.5 + away * math.sin(2 * math.pi * angle)) - centre_y)
    left = round(width * (0.5 + away * math.cos(2 * math.pi * angle)) - centre_x)
    for y, x in inside:
        row, column = y + top, x + left
        if not (0 <= row < height and 0 <= column < width):
            continue
        if front < config.in_front:
            mask[row, column] = 0
        elif mask[row, column]:
            continue
        image[row, column] = pixels[y, x]


def resize_image_to(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    resized = np.empty((*size, 3), np.uint8)
    resize_image(image, resized, 1.5)
    return resized


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 10_000), front=st.booleans())
def test_a_vehicle_is_pasted_as_a_loop_over_its_pixels_pastes_it(seed: int, front: bool) -> None:
    rng = np.random.default_rng(seed)
    config = PasteConfig(in_front=1.0 if front else 0.0, distance=(0.05, 1.2))
    height, width = rng.integers(8, 30, 2)
    image, other = rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 256, (17, 23, 3), np.uint8)
    mask = (rng.random((height, width)) < 0.5).astype(np.uint8)
    outline = np.zeros((17, 23), np.uint8)
    top, left = rng.integers(0, 16), rng.integers(0, 22)
    outline[top : rng.integers(top, 18), left : rng.integers(left, 24)] = 1  # sometimes empty
    fractions = rng.random(6)
    expected_image, expected_mask = image.copy(), mask.copy()
    _paste_slowly(expected_image, expected_mask, other, outline, fractions.tolist(), config)
    before = mask.copy()
    paste(image, mask, other, outline, fractions, config, 1.5)
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(mask, expected_mask)
    if not front:
        np.testing.assert_array_equal(mask, before)


@pytest.fixture
def source() -> MemorySource:
    return make_source(VEHICLES, masks=True, num_gallery=5)


def _stream(source: MemorySource, worker: int = 0, num_workers: int = 1, processes: int = 0) -> TrainStream:
    config = LoaderConfig.model_validate({"processes": processes, "masks": True, "start_method": "fork"})
    return TrainStream(source, PLAN, PASTING, config, seed=3, worker=worker, num_workers=num_workers)


def _global_sequence(source: MemorySource, num_workers: int, processes: int) -> list[bytes]:
    parts: list[list[Batch]] = []
    for worker in range(num_workers):
        stream = _stream(source, worker, num_workers, processes)
        parts.append(list(stream.batches(0)))
        stream.close()
    return [everything(step) for step in zip(*parts, strict=True)]


def test_workers_and_loader_processes_paste_the_same(source: MemorySource) -> None:
    expected = _global_sequence(source, 1, 0)
    for num_workers, processes in ((2, 0), (3, 2), (12, 0)):
        assert _global_sequence(source, num_workers, processes) == expected


def test_resuming_after_any_step_pastes_the_same(source: MemorySource) -> None:
    whole = [everything([batch]) for batch in _stream(source).batches(1)]
    for step in range(len(whole)):
        assert [everything([batch]) for batch in _stream(source).batches(1, start_step=step)] == whole[step:]


def test_about_half_of_the_images_change_and_masks_only_lose(source: MemorySource) -> None:
    config = LoaderConfig(masks=True)
    plain = TrainStream(source, PLAN, TRANSFORM, config, seed=3)
    changed = total = 0
    for own, pasted in zip(plain.batches(0), _stream(source).batches(0), strict=True):
        assert own.masks is not None
        assert pasted.masks is not None
        assert bool((pasted.masks <= own.masks).all())
        assert own.keypoints.equal(pasted.keypoints)
        changed += int((own.images != pasted.images).flatten(1).any(1).sum())
        total += len(own.images)
    assert 0.3 * total < changed < 0.55 * total  # a few land outside


def test_the_partner_is_what_the_slot_shows_next(source: MemorySource) -> None:
    stream = _stream(source)
    plan = plan_epoch(stream.table, PLAN, seed=3, epoch=0).reshape(stream.steps_in_epoch(0), -1)
    batches = stream.batches(0)
    source.reads.clear()
    next(batches)
    batches.close()
    drawn = draw_pastes(PasteConfig(), seed=3, epoch=0, step=0, num_images=PLAN.batch_size)
    expected = []
    for slot, row in enumerate(plan[0].tolist()):
        expected += [row] if np.isnan(drawn[slot, 0]) else [row, int(plan[1, slot])]
    assert source.reads[: len(expected)] == expected


def test_a_partner_that_cannot_be_read_pastes_nothing(source: MemorySource) -> None:
    whole = list(_stream(source).batches(0))
    victim = int(whole[1].samples[0])
    source.files[victim] = b"<html>"
    stream = TrainStream(source, PLAN, PASTING, LoaderConfig(masks=True, max_bad_fraction=0.1), seed=3)
    batches = stream.batches(0)
    first = next(batches)
    batches.close()
    assert first.samples.tolist() == whole[0].samples.tolist()
    assert first.images.shape == whole[0].images.shape
    assert stream.skipped.total() <= 1  # counted where it is shown itself


@pytest.mark.parametrize(("masks", "num_parts"), [(False, 0), (True, 2), (False, 2)])
def test_only_masks_that_are_learned_are_pasted(source: MemorySource, masks: bool, num_parts: int) -> None:
    with pytest.raises(ValueError, match=r"paste is for masks that are learned .* set it to null"):
        TrainStream(source, PLAN, PASTING, LoaderConfig(masks=masks), seed=0, num_parts=num_parts)


@pytest.mark.parametrize("wrong", [{"scale": (0.0, 1.0)}, {"scale": (1.0, 0.5)}, {"distance": (0.3, 2.0)}])
def test_ranges_that_make_no_sense_are_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValidationError, match="expected 0 < smallest <= largest"):
        PasteConfig.model_validate(wrong)


def test_a_run_of_one_step_pastes_its_own_images() -> None:
    source = make_source([3, 3], masks=True)
    plan = PlanConfig(identities_per_batch=2, images_per_identity=3)
    stream = TrainStream(source, plan, PASTING, LoaderConfig(masks=True), seed=0)
    assert len(list(stream.batches(0))) == stream.steps_in_epoch(0)
