"""Images of synthetic vehicles: determinism, masks and keypoints that fit the picture, groups of near-duplicates."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from reid.data.synthetic_images import (
    SyntheticConfig,
    SyntheticImage,
    build_camera,
    build_vehicle,
    cameras_of,
    draw_vehicle_image,
    model_number,
)
from reid.data.synthetic_marks import draw_sticker

CONFIG = SyntheticConfig(seed=7, num_train_identities=12, num_test_identities=8)


def clear_caches() -> None:
    build_vehicle.cache_clear()
    build_camera.cache_clear()


def assert_same(first: SyntheticImage, second: SyntheticImage) -> None:
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.orientation == second.orientation


def test_an_image_does_not_depend_on_what_was_drawn_before() -> None:
    expected = draw_vehicle_image(CONFIG, 5, 3, 1)
    clear_caches()
    for identity in (2, 9):
        draw_vehicle_image(CONFIG, identity, 3, 1)
    assert_same(draw_vehicle_image(CONFIG, 5, 3, 1), expected)


def test_more_identities_or_cameras_leave_the_images_of_the_others_alone() -> None:
    larger = CONFIG.model_copy(update={"num_test_identities": 50, "num_cameras": 12, "images_per_camera": 5})
    assert_same(draw_vehicle_image(larger, 5, 3, 1), draw_vehicle_image(CONFIG, 5, 3, 1))


def test_shots_cameras_identities_and_seeds_give_different_images() -> None:
    base = draw_vehicle_image(CONFIG, 5, 3, 1)
    others = [(CONFIG, 5, 3, 0), (CONFIG, 5, 2, 1), (CONFIG, 6, 3, 1)]
    others.append((CONFIG.model_copy(update={"seed": 8}), 5, 3, 1))
    for config, identity, camera, shot in others:
        other = draw_vehicle_image(config, identity, camera, shot)
        assert other.image.shape != base.image.shape or (other.image != base.image).any()


def test_raw_sizes_stay_in_the_configured_range_and_vary() -> None:
    sides = [max(draw_vehicle_image(CONFIG, 3, camera, shot).image.shape) for camera in range(1, 9) for shot in (0, 1)]
    assert min(sides) >= CONFIG.min_long_side
    assert max(sides) <= CONFIG.max_long_side
    assert max(sides) > 1.4 * min(sides)


def test_visible_keypoints_lie_in_the_image_and_on_the_mask() -> None:
    near = visible = 0
    for identity in range(1, 13):
        for camera in (1, 4, 5, 6):
            drawn = draw_vehicle_image(CONFIG, identity, camera, 0)
            height, width = drawn.mask.shape
            assert drawn.image.shape == (height, width, 3)
            assert set(np.unique(drawn.mask)) == {0, 255}
            grown = cv2.dilate(drawn.mask, np.ones((5, 5), np.uint8))
            for x, y, seen in drawn.keypoints:
                if seen:
                    assert -0.5 < x < width - 0.5
                    assert -0.5 < y < height - 0.5
                    visible += 1
                    near += grown[int(np.clip(round(y), 0, height - 1)), int(np.clip(round(x), 0, width - 1))] > 0
    assert visible > 400
    assert near / visible > 0.995


def test_the_mask_covers_a_vehicle_in_a_loose_box() -> None:
    for camera in range(1, 9):
        mask = draw_vehicle_image(CONFIG.model_copy(update={"obstacles": 0.0}), 4, camera, 0).mask > 0
        assert 0.3 < mask.mean() < 0.9
        columns = np.flatnonzero(mask.any(0))
        assert np.ptp(columns) > 0.75 * mask.shape[1]
        assert cv2.connectedComponents(mask.astype(np.uint8))[0] <= 4  # the vehicle, and mirrors at small sizes


def test_an_obstacle_hides_what_it_covers_from_mask_and_keypoints() -> None:
    always = CONFIG.model_copy(update={"obstacles": 3.0})
    never = CONFIG.model_copy(update={"obstacles": 0.0})
    covered = fewer_points = 0
    for identity in range(1, 9):
        for camera in range(1, 5):
            with_obstacle = draw_vehicle_image(always, identity, camera, 0)
            without = draw_vehicle_image(never, identity, camera, 0)
            assert with_obstacle.mask.shape == without.mask.shape
            assert not ((with_obstacle.mask > 0) & (without.mask == 0)).any()
            assert (with_obstacle.keypoints[:, 2] <= without.keypoints[:, 2]).all()
            covered += bool((with_obstacle.mask != without.mask).any())
            fewer_points += bool((with_obstacle.keypoints[:, 2] < without.keypoints[:, 2]).any())
    assert covered > 2
    assert fewer_points > 0


def test_training_and_test_identities_never_share_a_model() -> None:
    config = SyntheticConfig(num_train_identities=7, num_test_identities=6, group_size=4, unique_share=0.0)
    models = [model_number(config, identity) for identity in range(1, 14)]
    assert models[0] == models[3] != models[4]
    assert not set(models[:7]) & set(models[7:])
    unique = config.model_copy(update={"unique_share": 1.0})
    assert len({model_number(unique, identity) for identity in range(1, 14)}) == 13


def test_near_duplicates_differ_in_few_pixels_and_models_in_many() -> None:
    config = CONFIG.model_copy(
        update={"unique_share": 0.0, "group_size": 4, "obstacles": 0.0, "degradation": 0.0, "fitting_share": 0.0}
    )
    vehicles = [build_vehicle(config, identity) for identity in range(1, 9)]
    first = vehicles[0].atlas.levels[0].astype(int)
    for other in vehicles[1:4]:
        changed = (np.abs(other.atlas.levels[0].astype(int) - first).max(-1) > 20).mean()
        assert 0.001 < changed < 0.12
    assert vehicles[4].style != vehicles[0].style


def test_larger_marks_change_more_of_the_surface() -> None:
    plain = CONFIG.model_copy(update={"min_marks": 0, "max_marks": 0, "fitting_share": 0.0})
    shares = []
    for scale in (0.5, 1.0, 2.0):
        config = plain.model_copy(update={"min_marks": 6, "max_marks": 6, "mark_scale": scale})
        changed = [
            (build_vehicle(config, identity).atlas.levels[0] != build_vehicle(plain, identity).atlas.levels[0]).mean()
            for identity in (1, 6, 11)
        ]
        shares.append(float(np.mean(changed)))
    assert 0.0 < shares[0] < shares[1] < shares[2]


def test_marks_show_in_an_image_of_128_pixels() -> None:
    config = CONFIG.model_copy(
        update={"min_long_side": 128, "max_long_side": 128, "obstacles": 0.0, "degradation": 0.0, "fitting_share": 0.0}
    )
    bare = config.model_copy(update={"min_marks": 0, "max_marks": 0})
    strong = []
    for identity in range(1, 13):
        for camera in (1, 6):
            pictures = [draw_vehicle_image(which, identity, camera, 0).image.astype(int) for which in (config, bare)]
            strong.append(int((np.abs(pictures[0] - pictures[1]).max(-1) > 30).sum()))
    assert np.median(strong) > 15
    assert np.mean(np.array(strong) > 4) > 0.8


def test_cameras_have_their_own_colours_and_a_cast_of_zero_has_none() -> None:
    gains = [build_camera(CONFIG, camera).gains for camera in range(1, 9)]
    assert len(set(gains)) == 8
    neutral = build_camera(CONFIG.model_copy(update={"colour_cast": 0.0}), 3)
    assert neutral.gains == (1.0, 1.0, 1.0)
    assert neutral.exposure == neutral.gamma == neutral.saturation == 1.0


def test_every_identity_passes_the_configured_number_of_cameras() -> None:
    routes = {cameras_of(CONFIG, identity) for identity in range(1, 13)}
    assert len(routes) > 3
    for route in routes:
        assert len(set(route)) == CONFIG.cameras_per_identity
        assert min(route) >= 1
        assert max(route) <= CONFIG.num_cameras


def test_stickers_have_a_shape_and_a_see_through_border() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        opacity = draw_sticker(generator)[..., 3]
        assert 0.1 < (opacity > 127).mean() < 0.97


@pytest.mark.parametrize(("identity", "camera"), [(0, 1), (21, 1), (1, 0), (1, 9)])
def test_an_unknown_identity_or_camera_is_refused(identity: int, camera: int) -> None:
    offending = identity if identity != 1 else camera
    with pytest.raises(ValueError, match=f" {offending} is outside 1"):
        draw_vehicle_image(CONFIG, identity, camera, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_cameras": 3, "cameras_per_identity": 5}, "cameras_per_identity 5 exceeds num_cameras 3"),
        ({"min_long_side": 200, "max_long_side": 100}, "min_long_side 200 is more than max_long_side 100"),
        ({"min_marks": 5, "max_marks": 4}, "min_marks 5 is more than max_marks 4"),
        ({"mark_size": 2.0}, "mark_size"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticConfig.model_validate(values)
