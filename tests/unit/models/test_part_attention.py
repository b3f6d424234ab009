"""Attention of PMNet's branches: the loops, the widths of METHOD, and options that would be ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reid.models.part_attention import (
    MultiScaleAttention,
    PartAttentionConfig,
    ResidualAttention,
    SqueezeExcitation,
    build_part_attention,
)
from tests.reference import pmnet as reference

CHANNELS = 16


def _module(kind: str) -> nn.Module:
    """In float64 and evaluation, every weight and statistic away from its start value."""
    torch.manual_seed(0)
    reduction = 16 if kind == "residual" else 4
    module = build_part_attention(PartAttentionConfig.model_validate({"kind": kind, "reduction": reduction}), CHANNELS)
    module = module.double()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value) * 0.5)
    return module.eval()


def _maps(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, CHANNELS, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).relu()


@pytest.mark.parametrize(
    ("kind", "loops", "mistakes"),
    [
        ("multi_scale", reference.multi_scale_attention, [{"dilations": (1, 1, 1)}, {"added": False}]),
        ("squeeze_excitation", reference.squeeze_excitation, []),
        ("residual", reference.residual_attention, [{"residual": False}]),
    ],
)
def test_attention_equals_the_loops(kind: str, loops: Callable[..., Any], mistakes: list[dict[str, Any]]) -> None:
    module, maps = _module(kind), _maps()
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    with torch.inference_mode():
        actual = module(maps).numpy()
    for image, attended in zip(maps.numpy(), actual, strict=True):
        expected = loops(image, state)
        assert expected.std() > 0.1
        np.testing.assert_allclose(attended, expected, rtol=1e-10)
        for mistake in mistakes:
            assert np.abs(attended - loops(image, state, **mistake)).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("multi_scale", 1, 2), ("squeeze_excitation", 0, 1), ("residual", 1, 2)]
)
def test_attention_scales_each_value_within_its_limits(kind: str, low: float, high: float) -> None:
    maps = _maps()
    with torch.inference_mode():
        attended = _module(kind)(maps)
    assert ((attended >= low * maps) & (attended <= high * maps)).all()
    factors = (attended / maps)[maps > 0]
    assert factors.max() - factors.min() > 0.1


def test_the_widths_are_those_of_the_method() -> None:
    module = build_part_attention(PartAttentionConfig(), 512)
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    widths = [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in convolutions]
    assert widths == [(512, 128, 3)] * 3 + [(384, 128, 1), (128, 64, 3), (64, 1, 3)]
    assert [layer.dilation for layer in convolutions[:3]] == [(1, 1), (2, 2), (3, 3)]
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(512, 32), (32, 512)]
    assert module(torch.zeros(2, 512, 16, 16)).shape == (2, 512, 16, 16)


def test_masks_multiply_to_what_is_added() -> None:
    module, maps = _module("multi_scale"), _maps()
    assert isinstance(module, MultiScaleAttention)
    with torch.inference_mode():
        spatial, channel = module.masks(maps)
        assert spatial.std() > 0.01
        assert channel.std() > 0.01
        torch.testing.assert_close(module(maps) - maps, spatial * channel * maps)
    assert spatial.shape == (2, 1, 4, 5)
    assert channel.shape == (2, CHANNELS, 1, 1)


def test_kinds_build_their_modules_and_none_changes_nothing() -> None:
    kinds = {"multi_scale": MultiScaleAttention, "squeeze_excitation": SqueezeExcitation, "residual": ResidualAttention}
    for kind, expected in kinds.items():
        module = build_part_attention(PartAttentionConfig.model_validate({"kind": kind}), 16)
        assert isinstance(module, expected)
        assert all(parameter.requires_grad for parameter in module.parameters())
    none = build_part_attention(PartAttentionConfig(kind="none"), 16)
    maps = _maps()
    assert none(maps) is maps
    assert not list(none.parameters())


@pytest.mark.parametrize("kind", ["residual", "none"])
def test_a_reduction_that_would_be_ignored_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"attention '{kind}' has no reduction \(got 8\)"):
        PartAttentionConfig.model_validate({"kind": kind, "reduction": 8})
