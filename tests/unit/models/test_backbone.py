"""Backbones: shapes, strides and torchvision's layout."""

from __future__ import annotations

import pytest
import torch
import torchvision

from reid.models.backbone import Backbone, BackboneConfig, build_backbone


@pytest.mark.parametrize(("name", "feature_dim"), [("resnet18", 512), ("resnet50", 2048)])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_map_has_the_stride_and_depth_that_the_backbone_says(name: str, feature_dim: int, last_stride: int) -> None:
    backbone = build_backbone(BackboneConfig.model_validate({"name": name, "last_stride": last_stride})).eval()
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert backbone.stride == 16 * last_stride
    assert backbone.feature_dim == feature_dim
    assert maps.shape == (1, feature_dim, 64 // backbone.stride, 96 // backbone.stride)


@pytest.mark.parametrize(("name", "num_parameters"), [("resnet34", 21_284_672), ("resnet101", 42_500_160)])
def test_the_deeper_networks_have_torchvisions_parameters(name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        backbone = Backbone(name, 1)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in backbone.parameters()) == num_parameters


def test_first_weights_give_torchvisions_features() -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        backbone = build_backbone(BackboneConfig(name="resnet18", last_stride=2), state).eval()
        actual = network.fc(backbone(images).mean((2, 3)))
        expected = network(images)
    torch.testing.assert_close(actual, expected)
    with pytest.raises(ValueError, match=r"does not fit torchvision's resnet50: missing \d+ \(layer1"):
        build_backbone(BackboneConfig(name="resnet50"), state)


def test_a_hash_without_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="weights is None"):
        BackboneConfig(sha256="0" * 64)
