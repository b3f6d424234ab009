from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from reid.data.degradation import DegradationConfig, degrade, draw_degradation
from reid.data.transforms import TrainTransform, TransformConfig, draw_augmentation

OFF = DegradationConfig(blur_probability=0, cast=0, gamma=(1, 1), noise=(0, 0))


def ramp() -> NDArray[np.uint8]:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return np.ascontiguousarray(np.stack([levels, levels[::-1], levels.T], axis=-1))


def degraded(config: DegradationConfig, image: NDArray[np.uint8], slot: int = 0, seed: int = 0) -> NDArray[np.uint8]:
    result = image.copy()
    degrade(result, draw_degradation(config, seed=seed, epoch=0, step=3, num_images=40), slot)
    return result


def test_nothing_drawn_changes_nothing() -> None:
    assert np.array_equal(degraded(OFF, ramp()), ramp())


def test_a_cast_multiplies_each_channel_by_a_factor_of_its_own() -> None:
    config = OFF.model_copy(update={"cast": 0.3})
    factors = []
    for slot in range(5):
        actual = degraded(config, ramp(), slot).astype(float)
        for channel in range(3):
            before, after = ramp()[..., channel].ravel(), actual[..., channel].ravel()
            factor = float(after[before == 180][0]) / 180
            expected = np.array([min(255.0, value * factor) for value in before.tolist()])
            assert np.abs(after - expected).max() <= 1.3  # the factor is known to 0.5 / 180
            factors.append(factor)
    assert 0.69 < min(factors) < 0.9
    assert 1.1 < max(factors) < 1.31
    assert len(set(factors)) > 10


def test_gamma_is_the_power_of_the_level() -> None:
    for gamma in (0.5, 2.0):
        drawn = draw_degradation(
            OFF.model_copy(update={"gamma": (gamma, gamma)}), seed=0, epoch=0, step=0, num_images=1
        )
        actual = ramp()
        degrade(actual, drawn, 0)
        for before, after in zip(ramp().ravel().tolist(), actual.ravel().tolist(), strict=True):
            assert after == round(255 * (before / 255) ** gamma)


def test_noise_has_the_deviation_that_was_asked_for_and_no_mean() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    noise = degraded(OFF.model_copy(update={"noise": (10, 10)}), image).astype(float) - 128
    assert noise.std() == pytest.approx(10, rel=0.05)
    assert abs(noise.mean()) < 0.5
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.06


def test_blur_keeps_the_mean_and_takes_the_detail() -> None:
    checks = np.zeros((32, 32, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 200
    blurred = degraded(OFF.model_copy(update={"blur_probability": 1.0, "blur_sigma": (1.5, 1.5)}), checks)
    assert blurred[8:-8, 8:-8].std() < 5
    assert blurred.mean() == pytest.approx(100, abs=2)


def test_a_slot_is_the_same_whoever_draws_it_and_steps_differ() -> None:
    config, image = DegradationConfig(), ramp()
    assert np.array_equal(degraded(config, image, 7), degraded(config, image, 7))
    assert not np.array_equal(degraded(config, image, 7), degraded(config, image, 8))
    assert not np.array_equal(degraded(config, image, 7), degraded(config, image, 7, seed=1))


def test_the_transform_degrades_the_image_and_leaves_the_keypoints() -> None:
    plain = TransformConfig(height=16, width=16, padding=0, erasing_probability=0)
    config = plain.model_copy(update={"degradation": DegradationConfig()})
    augmentation = draw_augmentation(config, seed=0, epoch=0, step=0, num_images=4)
    actual = TrainTransform(config).image(ramp(), augmentation, 1, np.empty((16, 16, 3), np.uint8))
    expected = ramp()
    assert augmentation.degradation is not None
    degrade(expected, augmentation.degradation, 1)
    assert np.array_equal(actual, expected)
    points = np.full((1, 20, 3), 5.0)
    moved = TrainTransform(config).keypoints(points, np.array([[16, 16]]), augmentation, np.array([1]))
    assert np.array_equal(moved[0, :, :2], points[0, :, :2])


@pytest.mark.parametrize("wrong", [{"gamma": (0, 1)}, {"noise": (5, 2)}, {"blur_sigma": (-1, 1)}])
def test_ranges_that_are_none_are_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(wrong))} "):
        DegradationConfig.model_validate(wrong)
