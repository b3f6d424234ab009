"""Trilinear attention: loops in float64, normalisation, precision, and what the scale is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reid.models.attention import IMAGES_AT_A_TIME, AttentionConfig, trilinear_attention
from tests.reference import attention as reference

SCALED, LITERAL = AttentionConfig(), AttentionConfig(scaled=False)


def _features(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Like the end of a ResNet: nothing below 0."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).relu().to(dtype)


@pytest.mark.parametrize("scaled", [True, False])
def test_attention_equals_the_loops(scaled: bool) -> None:
    features = _features(3, 5, 2, 4)
    actual = trilinear_attention(features, AttentionConfig(scaled=scaled))
    assert actual.shape == features.shape
    for image, maps in zip(features.numpy(), actual.numpy(), strict=True):
        expected = reference.trilinear(image, scaled=scaled)
        assert expected.std() > 0.01
        np.testing.assert_allclose(maps, expected, rtol=1e-12)
        for wrong in (
            reference.trilinear(image, scaled=not scaled),
            reference.trilinear(image, scaled=scaled, over_first_dimension=True),
        ):
            assert np.abs(maps - wrong).max() > 1e-4
    if scaled:
        wrong = reference.trilinear(features[0].numpy(), scaled=True, both_scaled=True)
        assert np.abs(actual[0].numpy() - wrong).max() > 1e-3


def test_each_map_is_positive_and_sums_to_one() -> None:
    maps = trilinear_attention(_features(2, 6, 3, 5, dtype=torch.float32), SCALED)
    assert (maps > 0).all()
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 6))


def test_channels_that_are_alike_get_the_same_map() -> None:
    features = _features(1, 4, 3, 3)
    features[:, 2] = features[:, 0]
    maps = trilinear_attention(features, SCALED)
    torch.testing.assert_close(maps[:, 2], maps[:, 0])
    assert not torch.allclose(maps[:, 1], maps[:, 0], atol=1e-3)


def test_permuted_channels_and_cells_permute_the_maps() -> None:
    features = _features(1, 6, 4, 4)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    expected = trilinear_attention(features, SCALED)
    torch.testing.assert_close(trilinear_attention(features[:, order], SCALED), expected[:, order])
    torch.testing.assert_close(trilinear_attention(features.flip(3), SCALED), expected.flip(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_computed_in_float32_whatever_the_input_and_autocast(dtype: torch.dtype) -> None:
    features = _features(2, 8, 4, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        actual = trilinear_attention(features, SCALED)
    assert actual.dtype == torch.float32
    for image, maps in zip(features.double().numpy(), actual.numpy(), strict=True):
        np.testing.assert_allclose(maps, reference.trilinear(image, scaled=True), rtol=1e-5)


def test_large_activations_stay_finite_and_the_scale_keeps_channels_from_standing_alone() -> None:
    features = 0.6 * _features(1, 64, 16, 16, dtype=torch.float32)
    products = torch.bmm(features.flatten(2), features.flatten(2).mT)
    assert products.softmax(dim=2).diagonal(dim1=1, dim2=2).min() > 0.99  # the literal form: every channel is itself
    literal, scaled = trilinear_attention(features, LITERAL), trilinear_attention(features, SCALED)
    torch.testing.assert_close(literal, features.flatten(2).softmax(dim=2).view_as(features), atol=1e-4, rtol=1e-3)
    assert (scaled - literal).abs().max() > 1e-3
    assert trilinear_attention(1e3 * features, LITERAL).isfinite().all()


def test_maps_in_channels_last_give_the_same() -> None:
    features = _features(2, 5, 3, 4, dtype=torch.float32)
    expected = trilinear_attention(features, SCALED)
    actual = trilinear_attention(features.to(memory_format=torch.channels_last), SCALED)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("num_images", [1, IMAGES_AT_A_TIME, 2 * IMAGES_AT_A_TIME + 1])
def test_maps_of_an_image_do_not_depend_on_the_others_and_products_of_few_exist_at_a_time(num_images: int) -> None:
    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[-2:] == (64, 64):
                self.largest = max(self.largest, result.shape[0])
            return result

    features = _features(num_images, 64, 3, 5, dtype=torch.float32)
    expected = torch.cat([trilinear_attention(image[None], SCALED) for image in features])
    with Watch() as watch:
        actual = trilinear_attention(features, SCALED)
    assert torch.equal(actual, expected)
    assert watch.largest == min(num_images, IMAGES_AT_A_TIME)
