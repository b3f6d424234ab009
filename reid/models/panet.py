"""The network of PANet: one encoder that tells vehicles apart and draws their outline, and thereby finds their parts.

images --normalise--> encoder --> maps --> pooling, BNNeck, classifier        features, logits
                                   |-----> transposed convolutions, x 2 each  mask logits
                                   |-----> trilinear attention (when parts are located)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Final

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from reid.contracts import PANetOutput, Settings
from reid.models.attention import AttentionConfig, trilinear_attention
from reid.models.backbone import BackboneConfig, build_backbone
from reid.models.neck import Neck, NeckConfig
from reid.models.pixels import PixelNormalization

_DECODER_KERNEL: Final = 4
"""With stride 2 and padding 1 a transposed convolution of this size exactly doubles a map."""


class PANetConfig(Settings):
    """The network of PANet (METHOD 2.1)."""

    backbone: BackboneConfig = BackboneConfig()
    """Encoder."""
    neck: NeckConfig = NeckConfig()
    """Pooling of the classification branch."""
    decoder_channels: tuple[Annotated[int, Field(ge=1)], ...] = (256, 128, 64)
    """Of the maps inside the segmentation branch. Each block doubles the map, and so does the last convolution: three
    blocks and it lead from the encoder's 1/16 back to the image's size."""
    attention: AttentionConfig = AttentionConfig()
    """Attention maps, from which parts are located; plays no part in training."""


class PANet(nn.Module):
    """Encoder with a classification branch and a segmentation branch.

    Source: PMANet section III-A. Ours differs: the encoder's last stride is 1 by default, the channels of the decoder,
    of which the paper says nothing, are METHOD's, and the sigmoid after the last transposed convolution is left to the
    loss, which takes it in float32.
    """

    def __init__(
        self, config: PANetConfig, num_classes: int, backbone_state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Build the network.

        Args:
            config: Of the network.
            num_classes: Identities of the training split.
            backbone_state: First weights of the backbone under torchvision's names; None: random ones.

        Raises:
            ValueError: When the weights do not fit, or there are no classes.
        """
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, backbone_state)
        self.neck = Neck(config.neck, self.backbone.feature_dim, num_classes)
        self.decoder = _decoder(self.backbone.feature_dim, config.decoder_channels)
        self.normalise_pixels = PixelNormalization()

    @property
    def pooling(self) -> nn.Module:
        """(B, C, h, w) -> (B, C), of the feature map."""
        return self.neck.pooling

    @property
    def feature_dim(self) -> int:
        """Length of a retrieval feature, and number of attention maps."""
        return self.backbone.feature_dim

    def forward(self, images: Tensor) -> PANetOutput:
        """What the losses need.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.

        Returns:
            Features, logits, and mask logits of the images' size.
        """
        maps = self.feature_map(images)
        features, logits = self.neck(maps)
        return PANetOutput(features=features, logits=logits, masks=self._mask_logits(maps, images))

    def feature_map(self, images: Tensor) -> Tensor:
        """Last feature map (B, feature_dim, H / stride, W / stride) of RGB images with values 0..255 (B, 3, H, W)."""
        maps = self.backbone(self.normalise_pixels(images))
        assert isinstance(maps, Tensor)
        return maps

    def locate(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What parts are located with: the refined foreground and the attention map of each channel, in one pass.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.

        Returns:
            (B, 1, H, W) mask logits, foreground where they are not negative; (B, feature_dim, h, w) float32 attention
            maps of the size of the feature map.

        Raises:
            ValueError: In training mode, where the batch norms would depend on the other images of the batch.
        """
        self._refuse_training("locate")
        maps = self.feature_map(images)
        return self._mask_logits(maps, images), trilinear_attention(maps, self.config.attention)

    def segment(self, images: Tensor) -> Tensor:
        """The refined foreground alone: (B, 1, H, W) mask logits, as `locate` gives them.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.

        Raises:
            ValueError: In training mode, where the batch norms would depend on the other images of the batch.
        """
        self._refuse_training("segment")
        return self._mask_logits(self.feature_map(images), images)

    def embed(self, images: Tensor) -> Tensor:
        """Retrieval features: after the batch norm, L2-normalised (B, feature_dim) float32.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.

        Raises:
            ValueError: In training mode, where the batch norms would depend on the other images of the batch.
        """
        self._refuse_training("embed")
        return F.normalize(self.neck.embed(self.feature_map(images)).float())

    def _mask_logits(self, maps: Tensor, images: Tensor) -> Tensor:
        logits: Tensor = self.decoder(maps)
        if logits.shape[2:] == images.shape[2:]:
            return logits
        # An image whose sides are no multiples of 16, an encoder of stride 32, or another number of blocks.
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)

    def _refuse_training(self, name: str) -> None:
        if self.training:
            raise ValueError(f"{name}: the model is in training mode; call model.eval() first")


def _decoder(channels_in: int, channels: tuple[int, ...]) -> nn.Sequential:
    """(B, channels_in, h, w) -> (B, 1, H, W), doubled once more often than there are `channels`."""
    layers: list[nn.Module] = []
    for before, after in pairwise((channels_in, *channels)):
        layers += [_doubling(before, after, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, _doubling((channels_in, *channels)[-1], 1, bias=True))


def _doubling(channels_in: int, channels_out: int, *, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels_in, channels_out, _DECODER_KERNEL, stride=2, padding=1, bias=bias)
