"""Distance activation maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.visual.activation import activation_picture, distance_activation_maps, overlay_heat


def random_pair(seed=0, channels=6, size=4):
    maps = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return maps.mean(dim=(2, 3)), maps


def test_maps_equal_the_definition_as_loops():
    features, maps = random_pair()
    raw = np.zeros((2, 4, 4))
    for image in range(2):
        for channel in range(6):
            weight = (float(features[0, channel]) - float(features[1, channel])) ** 2
            raw[image] += weight * maps[image, channel].double().numpy()
    raw = np.maximum(raw, 0)
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    actual = distance_activation_maps(features, maps, (4, 4))
    assert expected.max() == 1
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_both_maps_share_one_scale():
    features, maps = random_pair(1)
    maps[1] = 0.1 * maps[0]
    first, second = distance_activation_maps(features, maps, (32, 48))
    assert first.shape == second.shape == (32, 48)
    np.testing.assert_allclose(second, 0.1 * first, atol=1e-6)
    assert first.max() > 0.5


def test_equal_features_have_no_map():
    features, maps = random_pair()
    first, second = distance_activation_maps(features[:1].repeat(2, 1), maps, (8, 8))
    assert not first.any()
    assert not second.any()


def test_a_channel_in_which_the_pair_agrees_is_ignored():
    features, maps = random_pair()
    features[:, 2] = 1.0
    with_noise = maps.clone()
    with_noise[:, 2] += 100 * torch.rand(2, 4, 4)
    for a, b in zip(
        distance_activation_maps(features, maps, (4, 4)),
        distance_activation_maps(features, with_noise, (4, 4)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_wrong_shapes_are_refused():
    features, maps = random_pair()
    with pytest.raises(ValueError, match=r"got \(2, 5\) and \(2, 6, 4, 4\)"):
        distance_activation_maps(features[:, :5], maps, (4, 4))
    with pytest.raises(ValueError, match=r"size \(4, 6\), got \(4, 5\)"):
        overlay_heat(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 5), np.float32))


def test_heat_is_seen_where_it_is():
    grey = np.full((20, 20, 3), 128, np.uint8)
    heat = np.zeros((20, 20), np.float32)
    heat[5:10, 5:10] = 1
    drawn = overlay_heat(grey, heat).astype(int)
    change = np.abs(drawn - 128).sum(axis=2)
    assert change[7, 7] > 2 * change[15, 15]
    assert (grey == 128).all()


def test_the_pair_is_drawn_side_by_side():
    images = tuple(np.zeros((30, 40, 3), np.uint8) for _ in range(2))
    heats = tuple(np.zeros((30, 40), np.float32) for _ in range(2))
    picture = activation_picture(images, heats, captions=("a", "b"), tile_size=50)
    assert picture.shape == (72, 4 * 50 + 3 * 6, 3)
