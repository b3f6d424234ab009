"""ResNet feature extractors in torchvision's layout, with the last stride as an option."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34, resnet50, resnet101

from reid.contracts import Settings
from reid.models.state_dict import load_fitting_state

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]

_CONSTRUCTORS: Final = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}


class BackboneConfig(Settings):
    """Which ResNet, how fine its last feature map, and where its weights come from."""

    name: BackboneName = "resnet50"
    """Depth of the network."""
    last_stride: Literal[1, 2] = 1
    """Stride of the last stage: 1 gives a map of 1/16 of the image (256x256 -> 16x16), 2 the classifier's 1/32."""
    weights: str | None = None
    """What a new run starts from. None: random weights. "cache": torchvision's IMAGENET1K_V1 file, if it already lies
    in torch's local cache (nothing is ever downloaded). Otherwise a path or URL: a .pth or .safetensors file with
    torchvision's keys (`fc.*` is ignored), or a checkpoint folder of PPT, PANet or PMANet, whose backbone is taken."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected sha256 of that file, or of the checkpoint's manifest.json; None: not checked (but a file of the cache
    must match its own name)."""

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


def build_backbone(config: BackboneConfig, state: Mapping[str, Tensor] | None = None) -> Backbone:
    """The network of `config`.

    Args:
        config: Its shape; what its `weights` name is read elsewhere.
        state: Its first weights under torchvision's names; None: random ones.

    Raises:
        ValueError: When the names or shapes of `state` do not fit.
    """
    backbone = Backbone(config.name, config.last_stride)
    if state is not None:
        load_fitting_state(backbone, state, source=config.weights, network=f"torchvision's {config.name}")
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
