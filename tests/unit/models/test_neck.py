"""Neck: pooling, the frozen shift of the batch norm, the classifier's start."""

from __future__ import annotations

import pytest
import torch

from reid.models.neck import GeneralizedMeanPooling, Neck, NeckConfig

MAPS = torch.rand(6, 8, 3, 5, generator=torch.Generator().manual_seed(0))


def test_average_pooling_is_the_mean_before_the_batch_norm() -> None:
    neck = Neck(NeckConfig(), 8, 4).eval()
    features, logits = neck(MAPS)
    torch.testing.assert_close(features, MAPS.mean((2, 3)))
    torch.testing.assert_close(neck.embed(MAPS), features, rtol=1e-4, atol=1e-5)  # a fresh batch norm changes nothing
    torch.testing.assert_close(logits, neck.embed(MAPS) @ neck.classifier.weight.T)


def test_the_batch_norm_keeps_its_shift_and_the_classifier_has_none() -> None:
    neck = Neck(NeckConfig(), 512, 400)
    assert not neck.batch_norm.bias.requires_grad
    assert (neck.batch_norm.bias == 0).all()
    assert (neck.batch_norm.weight == 1).all()
    assert neck.classifier.bias is None
    assert neck.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)


def test_gem_lies_between_mean_and_maximum_and_is_the_mean_at_exponent_one() -> None:
    mean = GeneralizedMeanPooling(1.0, 1e-6)(MAPS)
    torch.testing.assert_close(mean, MAPS.mean((2, 3)))
    expected = (MAPS.double() ** 3).mean((2, 3)) ** (1 / 3)
    actual = GeneralizedMeanPooling(3.0, 1e-6)(MAPS)
    torch.testing.assert_close(actual, expected.float())
    torch.testing.assert_close(GeneralizedMeanPooling(200.0, 1e-6)(MAPS), MAPS.amax((2, 3)), rtol=0.02, atol=0.0)
    assert (actual > mean).all()


def test_gems_exponent_learns_and_survives_maps_of_zeros() -> None:
    pooling = GeneralizedMeanPooling(3.0, 1e-6)
    maps = torch.cat((MAPS, torch.zeros(1, 8, 3, 5))).requires_grad_()
    pooling(maps).sum().backward()
    assert pooling.exponent.grad is not None
    assert pooling.exponent.grad.isfinite()
    assert pooling.exponent.grad != 0
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_gem_is_float32_inside_autocast() -> None:
    pooling = GeneralizedMeanPooling(3.0, 1e-6)
    maps = MAPS.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        actual = pooling(maps)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, pooling(maps.float()))


def test_options_that_would_be_ignored_and_empty_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="only apply to pooling 'gem'"):
        NeckConfig(gem_exponent=2.0)
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        Neck(NeckConfig(), 8, 0)
