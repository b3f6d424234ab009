"""The network of PPT: a global branch for retrieval and, in training, a local branch that compares plane by plane."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from reid.contracts import PPTOutput, Settings
from reid.models.backbone import BackboneConfig, build_backbone
from reid.models.neck import Neck, NeckConfig
from reid.models.perspective import PlaneConfig, average_planes, find_planes
from reid.models.pixels import PixelNormalization


class PPTConfig(Settings):
    """The network of PPT (METHOD 1.3)."""

    backbone: BackboneConfig = BackboneConfig()
    """Feature extractor."""
    neck: NeckConfig = NeckConfig()
    """Pooling of the global branch."""
    planes: PlaneConfig | None = PlaneConfig()
    """Local branch; null switches it off, which leaves the plain baseline."""


class PPT(nn.Module):
    """Backbone and neck, and in training the average feature of each visible plane.

    Source: PPT section 3.2. Ours differs: planes are averaged through folded weights, the same numbers without a warped
    map. The local branch has no parameters; at test time nothing of it is left.

    Dtype: call it under `torch.autocast` or not. The planes' weights are computed in float64 and meet the feature map
    in the map's own dtype, with sums in float32: casting the map up would cost more than everything else in the branch,
    and rounding weights that average over many cells costs less than the rounding that the map has already had.
    """

    def __init__(self, config: PPTConfig, num_classes: int, backbone_state: Mapping[str, Tensor] | None = None) -> None:
        """Build the network.

        Args:
            config: Of the network.
            num_classes: Identities of the training split.
            backbone_state: First weights of the backbone under torchvision's names; None: random ones.

        Raises:
            ValueError: When the weights do not fit, or there are no classes.
        """
        super().__init__()
        self.backbone = build_backbone(config.backbone, backbone_state)
        self.neck = Neck(config.neck, self.backbone.feature_dim, num_classes)
        self.plane_config = config.planes
        self.normalise_pixels = PixelNormalization()

    @property
    def pooling(self) -> nn.Module:
        """(B, C, h, w) -> (B, C), of the feature map."""
        return self.neck.pooling

    @property
    def feature_dim(self) -> int:
        """Length of a retrieval feature."""
        return self.backbone.feature_dim

    def forward(self, images: Tensor, keypoints: Tensor | None = None) -> PPTOutput:
        """What the losses need.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.
            keypoints: (B, 20, 3) x, y in pixels of `images` and visibility; None: no plane features.

        Returns:
            Features and logits; plane features when the branch is on and keypoints are given.
        """
        planes = plane_features = None
        if self.plane_config is not None and keypoints is not None:
            planes = find_planes(keypoints, images.shape[2], images.shape[3], self.plane_config)
        maps = self.feature_map(images)
        features, logits = self.neck(maps)
        if planes is not None and self.plane_config is not None:
            plane_features = average_planes(maps, planes, images.shape[2], images.shape[3], self.plane_config)
        return PPTOutput(
            features=features,
            logits=logits,
            plane_features=plane_features,
            plane_visible=None if planes is None else planes.visible,
        )

    def feature_map(self, images: Tensor) -> Tensor:
        """Last feature map (B, feature_dim, H / stride, W / stride) of RGB images with values 0..255 (B, 3, H, W)."""
        maps = self.backbone(self.normalise_pixels(images))
        assert isinstance(maps, Tensor)
        return maps

    def embed(self, images: Tensor) -> Tensor:
        """Retrieval features: after the batch norm, L2-normalised (B, feature_dim) float32.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.

        Raises:
            ValueError: In training mode, where the batch norms would depend on the other images of the batch.
        """
        if self.training:
            raise ValueError("embed: the model is in training mode; call model.eval() first")
        return F.normalize(self.neck.embed(self.feature_map(images)).float())
