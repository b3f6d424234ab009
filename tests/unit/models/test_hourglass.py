from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from reid.models.hourglass import Hourglass, HourglassConfig, ResidualBlock

SMALL = HourglassConfig(num_stacks=2, channels=16, depth=2)


def test_the_papers_network_has_the_size_that_is_published() -> None:
    with torch.device("meta"):
        model = Hourglass(HourglassConfig())
        maps = model(torch.empty(1, 3, 256, 256)).maps
    assert maps.shape == (1, 8, 20, 64, 64)
    # 25.6 million with 16 keypoints is what others report for 8 stacks; four more keypoints add 4 x (2 x 256 + 1) x 8.
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert 25.4 < millions < 25.8


@pytest.mark.parametrize(
    ("stacks", "channels", "depth", "pixels"), [(1, 8, 1, (16, 8)), (2, 48, 4, (128, 128)), (3, 12, 3, (32, 64))]
)
def test_all_sizes_come_from_the_config(stacks: int, channels: int, depth: int, pixels: tuple[int, int]) -> None:
    model = Hourglass(HourglassConfig(num_stacks=stacks, channels=channels, depth=depth)).eval()
    output = model(torch.zeros(2, 3, *pixels, dtype=torch.uint8))
    assert output.maps.shape == (2, stacks, 20, pixels[0] // 4, pixels[1] // 4)
    assert output.stride == 4


def test_every_parameter_learns_from_the_last_stack_or_is_the_last_stacks_own() -> None:
    torch.manual_seed(0)
    model = Hourglass(SMALL)
    model(torch.randint(0, 256, (3, 3, 32, 32))).maps[:, -1].square().sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set()


def test_a_later_stack_refines_an_earlier_one_and_never_the_other_way_round() -> None:
    torch.manual_seed(0)
    model = Hourglass(SMALL)
    model(torch.randint(0, 256, (2, 3, 32, 32))).maps[:, 0].square().sum().backward()
    assert not any(
        parameter.grad.any() for parameter in model.hourglasses[1].parameters() if parameter.grad is not None
    )
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.hourglasses[0].parameters())


def test_maps_begin_near_zero() -> None:
    torch.manual_seed(0)
    maps = Hourglass(SMALL)(torch.randint(0, 256, (2, 3, 32, 32))).maps
    assert 0 < maps.abs().max() < 0.05


def test_uint8_and_floating_images_give_the_same_maps() -> None:
    torch.manual_seed(0)
    model = Hourglass(SMALL).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = model(images.float()).maps
    assert expected.abs().sum() > 0
    torch.testing.assert_close(model(images).maps, expected, rtol=0, atol=0)


def test_a_residual_block_is_its_shortcut_plus_its_body() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(4, 6).eval()
    x = torch.randn(1, 4, 3, 3)
    expected = block.shortcut(x) + block.body(x)
    assert block(x).shape == (1, 6, 3, 3)
    torch.testing.assert_close(block(x), expected)
    torch.nn.init.zeros_(block.body[-1].weight)
    torch.nn.init.zeros_(block.body[-1].bias)
    torch.testing.assert_close(block(x), block.shortcut(x))


def test_images_that_do_not_halve_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match=r"40 x 32 pixels: expected multiples of 16 = stem stride 4 x 2\*\*2"):
        Hourglass(SMALL)(torch.zeros(1, 3, 40, 32))
    with pytest.raises(ValidationError, match="channels 18: expected a multiple of 4"):
        HourglassConfig(channels=18)
