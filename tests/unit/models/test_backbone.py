"""Backbones: shapes and strides, weights from files of torchvision's layout, and no download ever."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from reid.models.backbone import Backbone, BackboneConfig, build_backbone, weights_path


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


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


@pytest.fixture(params=[".pth", ".safetensors"])
def weights_file(request: pytest.FixtureRequest, tmp_path: Path, network: torch.nn.Module) -> Path:
    path = tmp_path / f"weights{request.param}"
    if request.param == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    return path


def test_weights_from_a_file_give_torchvisions_features(weights_file: Path, network: torch.nn.Module) -> None:
    sha256 = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    config = BackboneConfig(name="resnet18", last_stride=2, weights=str(weights_file), sha256=sha256)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        actual = network.fc(build_backbone(config).eval()(images).mean((2, 3)))
        expected = network(images)
    torch.testing.assert_close(actual, expected)


def test_a_file_with_another_hash_is_refused(weights_file: Path) -> None:
    config = BackboneConfig(name="resnet18", weights=str(weights_file), sha256="0" * 64)
    with pytest.raises(ValueError, match="expected sha256 0000"):
        build_backbone(config)


def test_a_file_of_another_network_is_refused_with_its_keys(weights_file: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit torchvision's resnet50: missing \d+ \(layer1"):
        build_backbone(BackboneConfig(name="resnet50", weights=str(weights_file)))


def test_a_checkpoint_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(ValueError, match="plain state dict"):
        build_backbone(BackboneConfig(name="resnet18", weights=str(path)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth, which does not exist"):
        build_backbone(BackboneConfig(name="resnet18", weights=str(tmp_path / "nowhere.pth")))


def test_the_cache_is_read_but_never_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = BackboneConfig(name="resnet18", weights="cache")
    path = weights_path(config)
    assert path == tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    with pytest.raises(FileNotFoundError, match=r"resnet18-f37072fd\.pth.*download https://"):
        build_backbone(config)
    assert not path.exists()
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    with pytest.raises(ValueError, match="expected sha256 f37072fd"):  # not the file of that name
        build_backbone(config)


def test_a_hash_without_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="weights is None"):
        BackboneConfig(sha256="0" * 64)
