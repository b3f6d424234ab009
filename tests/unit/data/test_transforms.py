"""Image, keypoints and mask move together, exactly as a loop over pixels moves them; draws depend on the step."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from reid.data.transforms import (
    Augmentation,
    EvalTransform,
    TrainTransform,
    TransformConfig,
    draw_augmentation,
    resize_image,
    resize_mask,
)
from tests.reference.transforms import (
    PAIRS,
    colour_jitter,
    crop_flip_fill,
    move_keypoint,
    resize_bilinear,
    resize_nearest,
)

EVERYTHING = TransformConfig(
    height=24,
    width=20,
    padding=3,
    padding_colour=(9, 8, 7),
    flip_probability=0.5,
    erasing_probability=0.5,
    occlusion_probability=0.7,
    occlusion_per_image=True,
)


def draw(config: TransformConfig, step: int = 0, num_images: int = 16, seed: int = 0) -> Augmentation:
    return draw_augmentation(config, seed=seed, epoch=0, step=step, num_images=num_images)


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with some structure, so that misplaced pixels show."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("size", [(24, 20), (31, 17), (14, 29), (35, 28)])
def test_training_images_equal_the_pixel_by_pixel_reference(size: tuple[int, int]) -> None:
    raw = photograph(*size)
    augmentation = draw(EVERYTHING)
    assert 0 < augmentation.flipped.sum() < 16
    assert 0 < (augmentation.erased[:, 2] > 0).sum() < 16
    assert 0 < (augmentation.occluded[:, 2] > 0).sum() < 16
    transform = TrainTransform(EVERYTHING)
    resized = resize_bilinear(raw, 24, 20)
    out = np.empty((24, 20, 3), dtype=np.uint8)
    for slot in range(16):
        boxes = [
            (augmentation.erased[slot], EVERYTHING.erasing_colour),
            (augmentation.occluded[slot], augmentation.occlusion_colours[slot]),
        ]
        crop, flipped = augmentation.crops[slot], bool(augmentation.flipped[slot])
        expected = crop_flip_fill(resized, 3, (9, 8, 7), crop, flipped, boxes)
        actual = transform.image(raw, augmentation, slot, out)
        assert actual is out
        # OpenCV's weights have 11 bits
        assert np.abs(actual - expected).max() <= (0 if size == (24, 20) else 1.5)
        wrong = crop_flip_fill(resized, 3, (9, 8, 7), crop[::-1] + 1, flipped, boxes)
        assert np.abs(actual - wrong).max() > 10


def test_masks_move_like_their_images() -> None:
    raw = np.random.default_rng(0).integers(0, 2, (31, 27), dtype=np.uint8)
    augmentation = draw(EVERYTHING)
    transform = TrainTransform(EVERYTHING)
    resized = resize_nearest(raw, 24, 20)[:, :, None]
    out = np.empty((24, 20), dtype=np.uint8)
    for slot in range(16):
        crop, flipped = augmentation.crops[slot], bool(augmentation.flipped[slot])
        expected = crop_flip_fill(resized, 3, (0,), crop, flipped, [])[:, :, 0]
        np.testing.assert_array_equal(transform.mask(raw, augmentation, slot, out), expected)


@settings(max_examples=40, deadline=None)
@given(
    raw_size=st.tuples(st.integers(10, 400), st.integers(10, 400)),
    padding=st.integers(0, 12),
    seed=st.integers(0, 10_000),
)
def test_keypoints_move_as_the_reference_moves_them(raw_size: tuple[int, int], padding: int, seed: int) -> None:
    config = TransformConfig(height=96, width=80, padding=padding, flip_probability=0.5)
    generator = np.random.default_rng(seed)
    points = np.empty((6, 20, 3), dtype=np.float32)
    points[..., 0] = generator.uniform(-5, raw_size[1] + 5, (6, 20))
    points[..., 1] = generator.uniform(-5, raw_size[0] + 5, (6, 20))
    points[..., 2] = generator.integers(0, 2, (6, 20))
    augmentation = draw(config, num_images=8, seed=seed)
    slots = np.array([7, 2, 3, 0, 1, 5])
    sizes = np.tile(raw_size, (6, 1))
    actual = TrainTransform(config).keypoints(points, sizes, augmentation, slots)
    assert actual.dtype == np.float32
    for image, slot in enumerate(slots):
        flipped = bool(augmentation.flipped[slot])
        for number in range(1, 21):
            x, y, visible = points[image, number - 1]
            became = PAIRS.get(number, number) if flipped else number
            moved = move_keypoint(x, y, raw_size, (96, 80), padding, augmentation.crops[slot], flipped)
            expected = (*moved, 1.0) if moved is not None and visible else (0.0, 0.0, 0.0)
            np.testing.assert_allclose(actual[image, became - 1], expected, atol=1e-3)


def centre_of_brightness(image: NDArray[np.uint8]) -> tuple[float, float]:
    weights = image[..., 0].astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((weights * x).sum() / weights.sum()), float((weights * y).sum() / weights.sum())


@pytest.mark.parametrize("raw_size", [(180, 250), (64, 64), (400, 90)])
def test_blobs_painted_at_keypoints_are_found_at_the_moved_keypoints(raw_size: tuple[int, int]) -> None:
    config = TransformConfig(height=64, width=64, padding=6, flip_probability=0.5, erasing_probability=0.0)
    height, width = raw_size
    generator = np.random.default_rng(1)
    points = np.ones((1, 20, 3), dtype=np.float32)
    points[0, :, 0] = generator.uniform(0.3, 0.7, 20) * width
    points[0, :, 1] = generator.uniform(0.3, 0.7, 20) * height
    augmentation = draw(config)
    transform = TrainTransform(config)
    out = np.empty((64, 64, 3), dtype=np.uint8)
    distances, distances_of_corner_convention = [], []
    for slot in (int(np.flatnonzero(augmentation.flipped)[0]), int(np.flatnonzero(~augmentation.flipped)[0])):
        moved = transform.keypoints(points, np.array([raw_size]), augmentation, np.array([slot]))[0]
        for number in range(1, 21):
            x, y = points[0, number - 1, :2]
            rows, columns = np.mgrid[:height, :width]
            spread = max(1.5, max(height, width) / 50)
            blob = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))
            raw = np.repeat(blob[..., None], 3, axis=2).astype(np.uint8)
            found_x, found_y = centre_of_brightness(transform.image(raw, augmentation, slot, out))
            became = PAIRS.get(number, number) if augmentation.flipped[slot] else number
            expected_x, expected_y, visible = moved[became - 1]
            assert visible == 1
            distances.append(math.hypot(found_x - expected_x, found_y - expected_y))
            # the usual mistake, x * scale without the half pixels, must be told apart where the scale is not 1
            shift = 0.5 * (64 / width - 1), 0.5 * (64 / height - 1)
            distances_of_corner_convention.append(
                math.hypot(found_x - expected_x + shift[0], found_y - expected_y + shift[1])
            )
    assert max(distances) < 0.12
    if raw_size != (64, 64):
        assert max(distances) < min(distances_of_corner_convention)


def test_points_that_are_not_finite_or_outside_become_invisible_zeros() -> None:
    config = TransformConfig(height=32, width=32, padding=0)
    points = np.ones((1, 20, 3), dtype=np.float32)
    points[0, :, :2] = 5
    points[0, 3, 0] = np.nan
    points[0, 4, 1] = np.inf
    points[0, 5, 0] = 31.6  # beyond the last pixel's area
    points[0, 6, 0] = 31.4
    points[0, 7, 2] = 0
    for keypoints in (
        TrainTransform(config).keypoints(points, np.array([[32, 32]]), draw(config), np.array([0])),
        EvalTransform(config).keypoints(points, np.array([[32, 32]])),
    ):
        invisible = np.flatnonzero(keypoints[0, :, 2] == 0).tolist()
        assert invisible == [3, 4, 5, 7]
        assert not keypoints[0, invisible].any()
        np.testing.assert_allclose(keypoints[0, 6], [31.4, 5, 1], rtol=1e-6)


def test_a_draw_depends_on_seed_epoch_and_step_and_on_nothing_drawn_before() -> None:
    config = TransformConfig(flip_probability=0.5, brightness=0.2, occlusion_probability=1.0)

    def fingerprint(seed: int, epoch: int, step: int) -> bytes:
        drawn = draw_augmentation(config, seed=seed, epoch=epoch, step=step, num_images=8)
        assert drawn.jitter is not None
        columns = (drawn.crops, drawn.flipped, drawn.jitter, drawn.erased, drawn.occluded, drawn.occlusion_colours)
        return b"".join(np.ascontiguousarray(column).tobytes() for column in columns)

    cases = [(seed, epoch, step) for seed in range(3) for epoch in range(3) for step in (0, 1, 2, 1000)]
    forwards = {case: fingerprint(*case) for case in cases}
    backwards = {case: fingerprint(*case) for case in reversed(cases)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(cases)


def test_an_option_does_not_change_what_the_others_draw() -> None:
    plain, more = draw(TransformConfig()), draw(TransformConfig(brightness=0.3, occlusion_probability=0.5))
    np.testing.assert_array_equal(plain.crops, more.crops)
    np.testing.assert_array_equal(plain.erased, more.erased)


def test_erasing_has_the_given_probability_areas_and_aspects() -> None:
    config = TransformConfig(height=200, width=160)
    boxes = np.concatenate([draw(config, step).erased for step in range(250)])
    erased = boxes[boxes[:, 2] > 0]
    assert 0.47 < len(erased) / len(boxes) < 0.53
    top, left, height, width = erased.T
    assert np.all((top >= 0) & (left >= 0) & (top + height <= 200) & (left + width <= 160))
    areas, aspects = height * width / (200 * 160), height / width
    assert 0.015 < areas.min() < 0.03
    assert 0.38 < areas.max() < 0.41
    assert 0.28 < aspects.min() < 0.35
    assert 2.9 < aspects.max() < 3.5
    # the mean of 0.02 ... 0.4 is 0.21; boxes that do not fit are drawn again, which favours small ones a little
    assert 0.19 < areas.mean() < 0.22


def test_one_occluding_box_serves_the_whole_batch_unless_asked_otherwise() -> None:
    config = TransformConfig(occlusion_probability=0.3, erasing_probability=0.0)
    batches = [draw(config, step) for step in range(400)]
    with_box = [drawn for drawn in batches if drawn.occluded[0, 2] > 0]
    assert 0.24 < len(with_box) / len(batches) < 0.36
    for drawn in batches:
        assert np.all(drawn.occluded == drawn.occluded[0])
        assert len(np.unique(drawn.occlusion_colours, axis=0)) == 16
    areas = np.array([drawn.occluded[0, 2] * drawn.occluded[0, 3] for drawn in with_box]) / 256**2
    assert 0.015 < areas.min() < 0.04
    assert 0.17 < areas.max() < 0.21
    each = draw(config.model_copy(update={"occlusion_per_image": True, "occlusion_probability": 1.0}))
    assert len(np.unique(each.occluded, axis=0)) == 16


def test_colour_jitter_equals_the_three_steps_one_after_the_other() -> None:
    config = TransformConfig(
        height=40, width=40, padding=0, erasing_probability=0, brightness=0.3, contrast=0.4, saturation=0.5
    )
    augmentation = draw(config)
    assert augmentation.jitter is not None
    assert augmentation.jitter.std(axis=0).min() > 0.05
    raw = photograph(40, 40)
    out = np.empty((40, 40, 3), dtype=np.uint8)
    for slot in range(8):
        expected = colour_jitter(raw, *augmentation.jitter[slot])
        actual = TrainTransform(config).image(raw, augmentation, slot, out)
        assert np.abs(actual - expected).max() <= 1.0
        assert np.abs(actual.astype(float) - raw).max() > 3


def test_test_images_are_resized_and_nothing_else() -> None:
    raw = photograph(37, 51)
    out = np.empty((24, 20, 3), dtype=np.uint8)
    expected = np.empty_like(out)
    resize_image(raw, expected, EVERYTHING.area_above)
    np.testing.assert_array_equal(EvalTransform(EVERYTHING).image(raw, out), expected)
    mask, expected_mask = np.empty((24, 20), dtype=np.uint8), np.empty((24, 20), dtype=np.uint8)
    resize_mask(raw[..., 0] // 128, expected_mask)
    np.testing.assert_array_equal(EvalTransform(EVERYTHING).mask(raw[..., 0] // 128, mask), expected_mask)
    assert 0 < expected_mask.mean() < 1


@pytest.mark.parametrize("size", [(160, 160), (160, 20), (24, 160)])
def test_shrinking_averages_along_the_axes_that_shrink(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: size[0], : size[1]]
    stripes = (rows if size[0] >= size[1] else columns) % 2 * 255  # of 5 pixels, 2 or 3 are white
    raw = np.repeat(stripes[..., None], 3, axis=2).astype(np.uint8)
    out = np.empty((32, 32, 3), dtype=np.uint8)
    resize_image(raw, out, area_above=1.5)
    assert np.abs(out.astype(int) - 127.5).max() < 30
    resize_image(raw, out, area_above=100)
    assert np.abs(out.astype(int) - 127.5).max() == 127.5


def test_images_are_written_into_a_batch_that_is_not_contiguous() -> None:
    raw = photograph(50, 60)
    config = TransformConfig(height=24, width=20, padding=3, flip_probability=0.5)
    augmentation = draw(config)
    wide = np.zeros((24, 40, 3), dtype=np.uint8)
    for slot in range(8):
        expected = TrainTransform(config).image(raw, augmentation, slot, np.empty((24, 20, 3), dtype=np.uint8))
        np.testing.assert_array_equal(TrainTransform(config).image(raw, augmentation, slot, wide[:, 10:30]), expected)
    assert not wide[:, :10].any()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"erasing_area": (0.4, 0.02)}, r"erasing_area \(0.4, 0.02\): expected 0 < smallest <= largest <= 1"),
        ({"occlusion_aspect": (0.0, 3.3)}, r"occlusion_aspect \(0.0, 3.3\): expected 0 < smallest <= largest"),
        ({"flip_probability": 1.5}, "less than or equal to 1"),
        ({"erasing_colour": (0, 0, 256)}, "less than or equal to 255"),
        ({"flip_probabilty": 0.5}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TransformConfig.model_validate(setting)
