"""ResNet feature extractors in torchvision's layout, with the last stride as an option and no silent downloads."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import (
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
)

from reid.contracts import Settings
from reid.models.state_dict import load_fitting_state

logger = logging.getLogger(__name__)

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]

_CONSTRUCTORS: Final = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}
_IMAGENET_WEIGHTS: Final = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
}


class BackboneConfig(Settings):
    """Which ResNet, how fine its last feature map, and where its weights come from."""

    name: BackboneName = "resnet50"
    """Depth of the network."""
    last_stride: Literal[1, 2] = 1
    """Stride of the last stage: 1 gives a map of 1/16 of the image (256x256 -> 16x16), 2 the classifier's 1/32."""
    weights: str | None = None
    """None: random. "cache": torchvision's IMAGENET1K_V1 file, if it already lies in torch's local cache (nothing is
    ever downloaded). Otherwise the path of a .pth or .safetensors file with torchvision's keys (`fc.*` is ignored)."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected sha256 of the weights file; None: not checked (but a file of the cache must match its own name)."""

    @model_validator(mode="after")
    def _sha256_needs_a_file(self) -> BackboneConfig:
        if self.sha256 is not None and self.weights is None:
            raise ValueError("sha256 is given but weights is None: name the file, or remove sha256")
        return self


class Backbone(nn.Module):
    """ResNet without pooling and classifier: (B, 3, H, W) -> (B, feature_dim, H / stride, W / stride).

    The parameters keep torchvision's names, so a state dict of torchvision's ResNet fits.
    """

    def __init__(self, name: BackboneName, last_stride: Literal[1, 2] = 1) -> None:
        super().__init__()
        network = _CONSTRUCTORS[name](weights=None)
        self.conv1 = network.conv1
        self.bn1 = network.bn1
        self.relu = network.relu
        self.maxpool = network.maxpool
        self.layer1 = network.layer1
        self.layer2 = network.layer2
        self.layer3 = network.layer3
        self.layer4 = network.layer4
        self.feature_dim: int = network.fc.in_features
        self.stride = 16 * last_stride
        if last_stride == 1:
            # The one block that halves the map: its first 3x3 convolution and its shortcut.
            for module in self.layer4[0].modules():
                if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                    module.stride = (1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Last feature map (B, feature_dim, H / stride, W / stride) of normalised images (B, 3, H, W)."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        assert isinstance(maps, Tensor)
        return maps


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network of `config`, with its weights loaded.

    Raises:
        FileNotFoundError: When the weights file is missing; the message names it.
        ValueError: When the file's hash or its keys and shapes do not fit.
    """
    backbone = Backbone(config.name, config.last_stride)
    path = weights_path(config)
    if path is not None:
        load_weights(backbone, path, config)
    return backbone


def split_last_stage(backbone: Backbone) -> tuple[nn.Sequential, nn.Module]:
    """A backbone in two pieces: everything up to conv4_x, and conv5_x, which may then be copied.

    Returns:
        The trunk, (B, 3, H, W) -> (B, C, H / 16, W / 16), whose parameters keep torchvision's names, and the last
        stage, (B, C, H / 16, W / 16) -> (B, feature_dim, H / stride, W / stride). They are the backbone's own modules.
    """
    # The children stand in the order in which `Backbone.forward` calls them.
    pieces = OrderedDict(backbone.named_children())
    last_stage = pieces.pop("layer4")
    return nn.Sequential(pieces), last_stage


def weights_path(config: BackboneConfig) -> Path | None:
    """The file that `config.weights` means, None for random weights. Looks at no network."""
    if config.weights is None:
        return None
    if config.weights == "cache":
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(_IMAGENET_WEIGHTS[config.name].url).name
    return Path(config.weights).expanduser()


def load_weights(backbone: Backbone, path: Path, config: BackboneConfig) -> None:
    """Load a torchvision state dict into `backbone`; `fc.*` is ignored, everything else must fit.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When hash, keys or shapes do not fit.
    """
    if not path.is_file():
        source = (
            f"download {_IMAGENET_WEIGHTS[config.name].url} to that place yourself, "
            if config.weights == "cache"
            else ""
        )
        raise FileNotFoundError(
            f"backbone.weights={config.weights!r}: expected the file {path}, which does not exist; {source}"
            f"give the path of a .pth or .safetensors file, or set weights to null for random ones"
        )
    _check_hash(path, config)
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(
                f"{path}: expected a plain state dict (name -> tensor) with the keys of torchvision's ResNet"
            )
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    load_fitting_state(backbone, state, source=path, network=f"torchvision's {config.name}")
    logger.info("backbone %s: %d tensors from %s", config.name, len(state), path)


def _check_hash(path: Path, config: BackboneConfig) -> None:
    # torchvision's names end in the first 8 digits of the file's sha256: resnet50-0676ba61.pth.
    expected = config.sha256 or (path.stem.rpartition("-")[2] if config.weights == "cache" else "")
    if not expected:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(expected):
        raise ValueError(f"{path}: expected sha256 {expected}, got {actual}; the file is damaged or another one")
