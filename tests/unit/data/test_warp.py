"""Rotation and scale move image, mask and keypoints alike, as a loop over pixels and points moves them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from reid.data.transforms import TrainTransform, TransformConfig, draw_augmentation
from reid.data.warp import WarpConfig, warp_matrices
from tests.reference.transforms import PAIRS, turn_and_scale, warp_bilinear

HEIGHT, WIDTH = 30, 24
CONFIG = TransformConfig(
    height=HEIGHT, width=WIDTH, padding=0, padding_colour=(9, 90, 200), flip_probability=0.5, erasing_probability=0.0,
    warp=WarpConfig(rotation_degrees=25, scale=(0.7, 1.3)),
)  # fmt: skip


def photograph(height: int, width: int) -> NDArray[np.uint8]:
    small = np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def angles_and_scales(matrices: NDArray[np.float64]) -> list[tuple[float, float]]:
    scales = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
    return list(zip(np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])), scales, strict=True))


def test_matrices_turn_and_scale_about_the_middle_within_their_limits() -> None:
    fractions = np.random.default_rng(0).random((50, 2))
    matrices = warp_matrices(WarpConfig(rotation_degrees=25, scale=(0.7, 1.3)), fractions, HEIGHT, WIDTH)
    for matrix, (degrees, scale), (angle_fraction, scale_fraction) in zip(
        matrices, angles_and_scales(matrices), fractions, strict=True
    ):
        assert degrees == pytest.approx(-25 + 50 * angle_fraction)
        assert scale == pytest.approx(0.7 + 0.6 * scale_fraction)
        expected = turn_and_scale(3.0, 20.0, degrees, scale, (HEIGHT, WIDTH))
        np.testing.assert_allclose(matrix @ np.array([3.0, 20.0, 1.0]), expected)
        wrong = turn_and_scale(3.0, 20.0, -degrees, scale, (HEIGHT, WIDTH))
        assert abs(degrees) < 2 or not np.allclose(expected, wrong, atol=0.3)


def test_warped_images_equal_the_pixel_by_pixel_reference() -> None:
    raw = photograph(HEIGHT, WIDTH)
    augmentation = draw_augmentation(CONFIG, seed=0, epoch=0, step=0, num_images=8)
    assert augmentation.warps is not None
    assert 0 < augmentation.flipped.sum() < 8
    out = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for slot, (degrees, scale) in enumerate(angles_and_scales(augmentation.warps)):
        actual = TrainTransform(CONFIG).image(raw, augmentation, slot, out).astype(float)
        expected = warp_bilinear(raw, degrees, scale, bool(augmentation.flipped[slot]), CONFIG.padding_colour)
        wrong = warp_bilinear(raw, -degrees, scale, bool(augmentation.flipped[slot]), CONFIG.padding_colour)
        # OpenCV rounds places to 1/32 of a pixel
        assert np.abs(actual - expected).mean() < 1.0
        assert np.abs(actual - expected).mean() < 0.2 * np.abs(actual - wrong).mean() or abs(degrees) < 3


@pytest.mark.parametrize("padding", [0, 3])
def test_keypoints_stay_on_the_marks_of_the_image_and_mirror_pairs_trade_places(padding: int) -> None:
    config = CONFIG.model_copy(update={"padding": padding, "padding_colour": (0, 0, 0)})
    augmentation = draw_augmentation(config, seed=3, epoch=1, step=2, num_images=24)
    transform, sizes = TrainTransform(config), np.array([[2 * HEIGHT, 3 * WIDTH]])
    rng, checked, hidden = np.random.default_rng(0), 0, 0
    for slot in range(24):
        number = int(rng.integers(20))
        x, y = int(rng.integers(12, 3 * WIDTH - 12)), int(rng.integers(10, 2 * HEIGHT - 10))
        raw = np.zeros((2 * HEIGHT, 3 * WIDTH, 3), dtype=np.uint8)
        raw[y - 3 : y + 4, x - 4 : x + 5] = 255  # a mark with its middle at the point
        points = np.zeros((1, 20, 3), np.float32)
        points[0, number] = (x, y, 1)
        out = transform.image(raw, augmentation, slot, np.empty((HEIGHT, WIDTH, 3), np.uint8)).astype(float)
        moved = transform.keypoints(points, sizes, augmentation, np.array([slot]))[0]
        seen = PAIRS.get(number + 1, number + 1) - 1 if augmentation.flipped[slot] else number
        assert not moved[[k for k in range(20) if k != seen]].any()
        if not moved[seen, 2]:
            hidden += 1
            continue
        weight = out[..., 0] / out[..., 0].sum()
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        middle = ((weight * columns).sum(), (weight * rows).sum())
        if 3 < moved[seen, 0] < WIDTH - 4 and 4 < moved[seen, 1] < HEIGHT - 5:  # the mark is whole
            np.testing.assert_allclose(middle, moved[seen, :2], atol=0.15)
            checked += 1
    assert checked >= 10


def test_masks_are_warped_like_their_images() -> None:
    augmentation = draw_augmentation(CONFIG, seed=5, epoch=0, step=0, num_images=6)
    transform = TrainTransform(CONFIG.model_copy(update={"padding_colour": (0, 0, 0)}))
    raw = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    raw[8:22, 6:18] = 1
    for slot in range(6):
        mask = transform.mask(raw, augmentation, slot, np.empty_like(raw))
        image = transform.image(
            np.repeat(255 * raw[..., None], 3, 2), augmentation, slot, np.empty((HEIGHT, WIDTH, 3), np.uint8)
        )
        assert set(np.unique(mask)) == {0, 1}
        assert np.mean((image[..., 0] > 127) != mask) < 0.03


def test_noise_fills_what_lies_outside_and_nothing_else_and_differs_between_slots() -> None:
    config = CONFIG.model_copy(
        update={"padding": 2, "warp": WarpConfig(rotation_degrees=0, scale=(0.5, 0.5), background="noise")}
    )
    augmentation = draw_augmentation(config, seed=0, epoch=0, step=4, num_images=3)
    raw = np.full((HEIGHT, WIDTH, 3), 77, np.uint8)
    transform = TrainTransform(config)
    outs = [transform.image(raw, augmentation, slot, np.empty((HEIGHT, WIDTH, 3), np.uint8)) for slot in (0, 1, 0)]
    assert np.array_equal(outs[0], outs[2])
    assert not np.array_equal(outs[0], outs[1])
    inner = outs[0][HEIGHT // 2 - 4 : HEIGHT // 2 + 4, WIDTH // 2 - 3 : WIDTH // 2 + 3]
    assert (inner == 77).all()
    border = np.concatenate([outs[0][:4].ravel(), outs[0][-4:].ravel()]).astype(float)
    assert 110 < border.mean() < 145
    assert border.std() > 60


def test_a_scale_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"scale \(1.2, 0.8\): expected 0 < smallest <= largest"):
        WarpConfig(scale=(1.2, 0.8))
