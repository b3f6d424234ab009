"""Coarse masks: what plain OpenCV calls give, the same every time, and an ellipse where that is no mask."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from reid.data.additions import Sample
from reid.data.coarse_masks import FALLBACKS, CoarseMaskConfig, CoarseMasks, coarse_mask, ellipse_mask, encode_mask
from reid.data.decode import decode_mask
from tests.reference.coarse_masks import plain_coarse_mask, plain_cut, plain_padded, plain_square_mask
from tests.unit.data.raw_images import encoded_noise

METHOD = CoarseMaskConfig()
FAST = CoarseMaskConfig(size=48, padding=8)


def scene(seed: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A two-coloured blob on a rough road, and its mask."""
    generator = np.random.default_rng(seed)
    pixels = generator.normal(110, 25, (height, width, 3))
    truth = np.zeros((height, width), np.uint8)
    centre = (round(width * generator.uniform(0.4, 0.6)), round(height * generator.uniform(0.4, 0.6)))
    axes = (round(width * generator.uniform(0.25, 0.38)), round(height * generator.uniform(0.25, 0.38)))
    cv2.ellipse(truth, centre, axes, 0, 0, 360, 1, -1)
    inside = truth > 0
    pixels[inside] = generator.integers(0, 256, 3) + generator.normal(0, 12, (int(inside.sum()), 3))
    pixels[inside & (np.arange(height) < height // 2)[:, None]] *= 0.6
    return np.clip(pixels, 0, 255).astype(np.uint8), truth


def iou(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.sum(one & other) / np.sum(one | other))


@pytest.mark.parametrize("shape", [(40, 60), (48, 48), (70, 90), (30, 100), (100, 30), (200, 64), (9, 11)])
def test_masks_are_those_of_plain_opencv_calls(shape: tuple[int, int]) -> None:
    compared = 0
    for seed in range(6):
        image, _ = scene(seed, *shape)
        actual, problem = coarse_mask(image, FAST)
        expected = plain_coarse_mask(image, FAST.size, FAST.padding)
        if expected is None:
            assert problem in FALLBACKS
            expected = ellipse_mask(*shape, FAST.ellipse)
        else:
            assert problem == ""
            compared += 1
        np.testing.assert_array_equal(actual, expected)
    assert compared >= 3


@pytest.mark.parametrize("shape", [(150, 210), (300, 420)])
def test_the_defaults_are_the_methods_numbers(shape: tuple[int, int]) -> None:
    image, truth = scene(1, *shape)
    actual, problem = coarse_mask(image, METHOD)
    assert problem == ""
    np.testing.assert_array_equal(actual, plain_coarse_mask(image))
    assert iou(actual, truth) > 0.9


def test_the_turned_image_takes_part() -> None:
    """The masks must not be those of one cut."""
    num_different = 0
    for seed in (0, 1, 5, 8, 9):
        image, _ = scene(seed, 60, 80)
        padded = plain_padded(image, FAST.size, FAST.padding)
        once = plain_cut(padded, FAST.size, FAST.padding)[8:-8, 8:-8]
        twice = plain_square_mask(image, FAST.size, FAST.padding)
        assert not (twice & ~once).any()
        num_different += int((once != twice).sum())
    assert num_different > 0


def test_masks_depend_on_nothing_that_happened_before() -> None:
    image, _ = scene(3, 50, 70)
    expected, _ = coarse_mask(image, FAST)
    threads = cv2.getNumThreads()
    try:
        for number in (1, 2, 3):
            cv2.setNumThreads(number)
            cv2.setRNGSeed(number)
            coarse_mask(scene(number, 30, 30)[0], FAST)
            np.testing.assert_array_equal(coarse_mask(image, FAST)[0], expected)
    finally:
        cv2.setNumThreads(threads)


def test_the_image_is_left_as_it_is() -> None:
    image, _ = scene(3, 50, 70)
    before = image.copy()
    coarse_mask(image, FAST)
    np.testing.assert_array_equal(image, before)


def test_too_little_and_too_much_foreground_give_the_ellipse_and_the_reason() -> None:
    image, _ = scene(1, 60, 80)
    mask, problem = coarse_mask(image, FAST)
    assert problem == ""
    share = float(mask.mean())
    expected = ellipse_mask(60, 80, FAST.ellipse)
    for changes, reason in (
        ({"min_foreground": share + 0.1}, "foreground_small"),
        ({"max_foreground": share - 0.1}, "foreground_large"),
    ):
        actual, problem = coarse_mask(image, FAST.model_copy(update=changes))
        assert problem == reason
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (8, 900), (900, 8), (60, 60)])
@pytest.mark.parametrize("value", [0, 120, 255])
def test_an_image_of_one_colour_gets_the_ellipse(shape: tuple[int, int], value: int) -> None:
    actual, problem = coarse_mask(np.full((*shape, 3), value, np.uint8), FAST)
    assert problem == "foreground_small"
    np.testing.assert_array_equal(actual, ellipse_mask(*shape, FAST.ellipse))
    assert actual.any()


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (3, 3), (1, 200), (5, 400), (400, 5)])
def test_tiny_and_narrow_images_get_a_mask_of_their_size(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask, _ = coarse_mask(image, FAST)
    assert mask.shape == shape
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}


def test_the_ellipse_is_centred_and_of_its_axes() -> None:
    mask = ellipse_mask(101, 200, 0.8)
    np.testing.assert_array_equal(mask, mask[::-1, ::-1])
    assert mask.mean() == pytest.approx(np.pi / 4 * 0.64, rel=0.01)
    assert np.flatnonzero(mask.any(0)).size == pytest.approx(160, abs=1)
    assert np.flatnonzero(mask.any(1)).size == pytest.approx(81, abs=1)


def test_a_mask_survives_its_file() -> None:
    mask = np.random.default_rng(0).integers(0, 2, (13, 17)).astype(np.uint8)
    data = encode_mask(mask)
    np.testing.assert_array_equal(decode_mask(data), mask)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), mask * 255)


def test_an_image_that_cannot_be_read_gets_the_ellipse_of_its_size() -> None:
    whole = encoded_noise(0, 30, 20)
    files = [whole, whole[:-50], b"<html>"]
    samples = [
        Sample(key=str(n), split="train", image=memoryview(data), width=30, height=20, mask=None, keypoints=None)
        for n, data in enumerate(files)
    ]
    _, truncated, unreadable = CoarseMasks(FAST)(iter(samples))
    assert (truncated.problem, unreadable.problem) == ("image_truncated", "image_unreadable")
    for additions in (truncated, unreadable):
        assert additions.mask is not None
        mask = decode_mask(additions.mask)
        np.testing.assert_array_equal(mask, ellipse_mask(20, 30, FAST.ellipse))
        assert additions.measures["foreground_share"] == pytest.approx(mask.mean())


def test_every_setting_is_part_of_the_provenance() -> None:
    first = CoarseMasks().provenance
    assert first.name == "coarse-masks"
    assert cv2.__version__ in first.version
    assert CoarseMasks(FAST).provenance != first
    assert first.settings.keys() == CoarseMaskConfig.model_fields.keys()
