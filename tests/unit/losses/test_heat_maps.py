from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from reid.contracts import HeatMapOutput
from reid.losses.heat_maps import HeatMapLossConfig, gaussian_maps, heat_map_loss
from tests.reference import heat_maps as reference

STRIDE = 4


def random_points(images: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(images, 20, 3, generator=generator) * torch.tensor([32.0, 24.0, 1.0])
    points[..., 2] = (points[..., 2] > 0.4).float()
    return points * points[..., 2:]


@pytest.mark.parametrize("sigma", [1.0, 1.7])
def test_target_maps_equal_the_cell_by_cell_reference(sigma: float) -> None:
    points = random_points()
    actual = gaussian_maps(points, 6, 8, STRIDE, sigma)
    visible = 0
    for image in range(3):
        for number in range(20):
            x, y, shown = points[image, number].tolist()
            expected = reference.gaussian_map(x, y, 6, 8, STRIDE, sigma) if shown else np.zeros((6, 8))
            visible += int(shown)
            np.testing.assert_allclose(actual[image, number].numpy(), expected, atol=2e-6)
    assert 20 < visible < 50
    shifted = reference.gaussian_map(*points[0, int(points[0, :, 2].argmax()), :2].tolist(), 6, 8, STRIDE + 1, sigma)
    assert not np.allclose(actual[0, int(points[0, :, 2].argmax())].numpy(), shifted, atol=1e-3)


def test_a_point_at_a_cells_centre_gives_a_peak_of_one_there() -> None:
    points = torch.zeros(1, 1, 3)
    points[0, 0] = torch.tensor([2.5 * STRIDE - 0.5, 1.5 * STRIDE - 0.5, 1.0])
    target = gaussian_maps(points, 4, 6, STRIDE, 1.0)[0, 0]
    assert target[1, 2] == 1.0
    assert target[1, 3] == pytest.approx(math.exp(-0.5))
    assert target[2, 3] == pytest.approx(math.exp(-1.0))


def test_rounded_targets_lie_on_cells() -> None:
    points = random_points()
    rounded = gaussian_maps(points, 8, 10, STRIDE, 1.0, rounded=True)
    inside = points[..., 2] > 0
    torch.testing.assert_close(rounded.amax((2, 3))[inside], torch.ones(int(inside.sum())))
    assert (gaussian_maps(points, 8, 10, STRIDE, 1.0).amax((2, 3))[inside] < 0.99).any()


@pytest.mark.parametrize("invisible", ["zero", "masked"])
@pytest.mark.parametrize("stacks", [1, 3])
def test_the_loss_equals_the_loop_over_every_cell(invisible: Literal["zero", "masked"], stacks: int) -> None:
    torch.manual_seed(1)
    points = random_points(2)
    maps = torch.randn(2, stacks, 20, 6, 8)
    config = HeatMapLossConfig(invisible=invisible)
    expected = reference.loss(maps.numpy().astype(float), points.numpy(), STRIDE, 1.0, invisible == "masked")
    wrong = reference.loss(maps.numpy().astype(float), points.numpy(), STRIDE, 1.0, invisible != "masked")
    actual = heat_map_loss(HeatMapOutput(maps=maps, stride=STRIDE), points, config)
    assert expected > 1
    assert actual.total.item() == pytest.approx(expected, rel=1e-5)
    assert actual.total.item() != pytest.approx(wrong, rel=1e-2)
    assert set(actual.parts) == ({"last_stack"} if stacks == 1 else {"first_stack", "last_stack"})


def test_masked_points_get_no_gradient_and_supervised_ones_are_pulled_to_zero() -> None:
    points = random_points(1)
    hidden = points[0, :, 2] == 0
    for invisible, expected in (("masked", 0.0), ("zero", 2 * 0.5 / 20)):
        maps = torch.full((1, 1, 20, 6, 8), 0.5, requires_grad=True)
        output = HeatMapOutput(maps=maps, stride=STRIDE)
        config = HeatMapLossConfig.model_validate({"invisible": invisible})
        heat_map_loss(output, points, config).total.backward()
        assert maps.grad is not None
        torch.testing.assert_close(maps.grad[0, 0, hidden], torch.full((int(hidden.sum()), 6, 8), expected))


def test_the_loss_of_a_batch_is_the_mean_of_its_halves_also_when_they_show_different_points() -> None:
    torch.manual_seed(2)
    points, maps = random_points(4, seed=3), torch.randn(4, 2, 20, 6, 8)
    points[:2, :15, 2] = 0
    for invisible in ("zero", "masked"):
        config = HeatMapLossConfig.model_validate({"invisible": invisible})

        def value(chosen: slice, config: HeatMapLossConfig = config) -> torch.Tensor:
            return heat_map_loss(HeatMapOutput(maps=maps[chosen], stride=STRIDE), points[chosen], config).total

        whole, halves = value(slice(0, 4)), (value(slice(0, 2)) + value(slice(2, 4))) / 2
        torch.testing.assert_close(whole, halves)


def test_a_perfect_prediction_costs_nothing_and_the_peaks_are_reported() -> None:
    points = random_points(2)
    maps = gaussian_maps(points, 6, 8, STRIDE, 1.0)
    terms = heat_map_loss(HeatMapOutput(maps=maps[:, None], stride=STRIDE), points, HeatMapLossConfig())
    assert terms.total == 0
    assert terms.statistics["peak/visible"] > 0.6
    assert terms.statistics["peak/invisible"] == 0
