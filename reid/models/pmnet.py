"""The network of PMNet: a global head and a part head on one trunk, for retrieval by one weighted vector.

images --normalise--> conv1 .. conv4 --> conv5 --> convolution --> pooling, BNNeck, classifier          f_g
                                    |          |-> PPT's planes (combination, training only)
                                    |--> conv5 --> K branches --> main tasks on the whole map           g
                                                              |-> partial tasks on the parts of PANet   h
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from reid.contracts import LOG_VARIANCE_BOUNDS, PMNET_IDENTITY_LOSSES, PMNetOutput, Settings
from reid.models.backbone import BackboneConfig, build_backbone, split_last_stage
from reid.models.convolution import convolution_block
from reid.models.neck import FeatureNeck, NeckConfig, build_pooling
from reid.models.part_head import PartHead, PartHeadConfig
from reid.models.perspective import PlaneConfig, average_planes, find_planes
from reid.models.pixels import PixelNormalization


class GlobalHeadConfig(Settings):
    """The global head of PMNet (METHOD 2.2)."""

    channels: int | None = Field(default=512, ge=1)
    """Of the 1x1 convolution before pooling, and of the feature f_g; null: no convolution."""


class PMNetConfig(Settings):
    """The network of PMNet (METHOD 2.2)."""

    backbone: BackboneConfig = BackboneConfig()
    """Feature extractor; each head has its own copy of the last stage."""
    neck: NeckConfig = NeckConfig()
    """Pooling of the global head and of the main tasks; partial tasks take the maximum. GeM has one exponent."""
    global_head: GlobalHeadConfig | None = GlobalHeadConfig()
    """null: off (Table III)."""
    part_head: PartHeadConfig | None = PartHeadConfig()
    """null: off (Table III), which leaves a plain baseline."""
    planes: PlaneConfig | None = None
    """PPT's local branch on the global head's last stage, in training only: the combination that neither paper has.
    null: off, as in PMANet."""
    learned_loss_weights: bool = True
    """The model has the log variances that weigh the identity losses (HUL); false: the loss has fixed weights."""

    @model_validator(mode="after")
    def _needs_a_head(self) -> Self:
        if self.global_head is None and self.part_head is None:
            raise ValueError("global_head and part_head are both null: at least one is needed")
        if self.planes is not None and self.global_head is None:
            raise ValueError("planes are compared on the global head's map, but global_head is null: set one of them")
        only_partial = self.part_head is not None and self.part_head.tasks == "partial" and self.global_head is None
        if only_partial and self.neck.pooling == "gem":
            raise ValueError(
                "neck.pooling is gem, but partial tasks, which are all there is, take the maximum: remove it"
            )
        return self

    @property
    def uses_stripes(self) -> bool:
        """Parts are uniform stripes, whatever the shards hold."""
        return self.part_head is not None and self.part_head.boxes == "stripes"

    @property
    def parts_read(self) -> int:
        """Part boxes of each image that training takes; 0: neither boxes nor masks."""
        return 0 if self.part_head is None or self.part_head.tasks == "main" else self.part_head.num_parts


class PMNet(nn.Module):
    """Two heads on one trunk; in training also partial tasks, which masks and boxes of PANet guide.

    Source: PMANet section III-B. Ours differs: the learned loss weights are parameters of the model, so that workers
    average their gradients and checkpoints hold them.
    """

    def __init__(
        self, config: PMNetConfig, num_classes: int, backbone_state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Build the network.

        Args:
            config: Of the network.
            num_classes: Identities of the training split.
            backbone_state: First weights of the backbone under torchvision's names, for both copies of its last
                stage; None: random ones.

        Raises:
            ValueError: When the weights do not fit, or there are no classes.
        """
        super().__init__()
        self.config = config
        backbone = build_backbone(config.backbone, backbone_state)
        self.trunk, last_stage = split_last_stage(backbone)
        self.pooling = build_pooling(config.neck)
        self.global_stage: nn.Module | None = None
        self.part_stage: nn.Module | None = None
        if config.global_head is not None:
            self.global_stage = copy.deepcopy(last_stage)
            channels = config.global_head.channels
            self.global_convolution = (
                nn.Identity() if channels is None else convolution_block(backbone.feature_dim, channels, 1)
            )
            self.global_neck = FeatureNeck(channels or backbone.feature_dim, num_classes)
        if config.part_head is not None:
            self.part_stage = last_stage
            self.part_head = PartHead(config.part_head, backbone.feature_dim, num_classes)
        self.log_variances = (
            nn.Parameter(torch.zeros(len(PMNET_IDENTITY_LOSSES))) if config.learned_loss_weights else None
        )
        self.normalise_pixels = PixelNormalization()

    @property
    def feature_dim(self) -> int:
        """Length of a retrieval feature: f_g and g, without h unless there are only partial tasks."""
        length = 0
        if self.global_stage is not None:
            length += self.global_neck.batch_norm.num_features
        if self.config.part_head is not None:
            length += self.config.part_head.num_parts * self.config.part_head.branch_channels
        return length

    @property
    def needs_parts(self) -> bool:
        """Training takes masks and boxes."""
        return self.config.parts_read > 0

    def forward(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        boxes: Tensor | None = None,
        keypoints: Tensor | None = None,
    ) -> PMNetOutput:
        """What the losses need.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.
            masks: (B, 1, H, W) 0/1 vehicle foreground.
            boxes: (B, K, 4) floating: left, top, right, bottom of each part as shares 0..1 of width and height, branch
                k's part always at place k.
            keypoints: (B, 20, 3) x, y in pixels of `images` and visibility, for the planes; None: no plane features.

        Returns:
            Features and logits of every head and task that is on, and of the planes where they are.

        Raises:
            ValueError: When partial tasks are on and masks or boxes are missing or do not fit, or are off and they are
                given.
        """
        self._check_parts(masks, boxes, needed=self.needs_parts)
        height, width = images.shape[2:]
        planes = plane_features = None
        if self.config.planes is not None and keypoints is not None:
            planes = find_planes(keypoints, height, width, self.config.planes)
        maps = self._trunk_map(images)
        features = logits = main = partial = None
        if self.global_stage is not None:
            stage = self.global_stage(maps)
            features = self.pooling(self.global_convolution(stage))
            logits = self.global_neck(features)
            if planes is not None and self.config.planes is not None:
                plane_features = average_planes(stage, planes, height, width, self.config.planes)
        if self.part_stage is not None:
            main, partial = self.part_head(self.part_stage(maps), self.pooling, masks, boxes)
        return PMNetOutput(
            features=features,
            logits=logits,
            main=main,
            partial=partial,
            log_variances=self.log_variances,
            plane_features=plane_features,
            plane_visible=None if planes is None else planes.visible,
        )

    def feature_map(self, images: Tensor) -> Tensor:
        """The maps that `pooling` makes f_g and g of, one after the other along the channels.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.

        Returns:
            (B, feature_dim, h, w).

        Raises:
            ValueError: When the model has nothing but partial tasks.
        """
        maps = self._trunk_map(images)
        found = []
        if self.global_stage is not None:
            found.append(self._global_map(maps))
        if self.part_stage is not None:
            whole, _ = self.part_head.maps(self.part_stage(maps), None, None)
            found += whole or []
        if not found:
            raise ValueError("feature_map: the model has only partial tasks, which look at no map of the whole image")
        return torch.cat(found, dim=1)

    def responses(
        self, images: Tensor, masks: Tensor | None = None, boxes: Tensor | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Response maps of each branch before and after its attention, the mean over its channels (PMANet, Figure 9).

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.
            masks: As for `forward`; None, together with `boxes`: no partial tasks.
            boxes: As for `forward`.

        Returns:
            "main" and "partial", as far as the model has these tasks and is given parts: (B, K, h, w) before, and
            after. A partial task's map is the stretched part, not the whole image.
        """
        if self.part_stage is None:
            return {}
        maps = self.part_stage(self._trunk_map(images))
        whole, parts = self.part_head.maps(maps, masks, boxes)
        branches, crops = self.part_head.inputs(maps, masks, boxes)
        found = {}
        for name, before, after in (("main", branches, whole), ("partial", crops, parts)):
            if before is not None and after is not None:
                found[name] = before.mean(2), torch.stack(after, dim=1).mean(2)
        return found

    def embed(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        boxes: Tensor | None = None,
        *,
        weights: Sequence[float] | None = None,
    ) -> Tensor:
        """Retrieval features, L2-normalised: one vector whose cosine distance is the weighted sum of the heads' own.

        Each of f_g, g and h is taken after its batch norm, normalised and multiplied by the square root of its share of
        the retrieval weights. The cosine distance D of two such vectors is then

            (l1 D(f_g) + l2 D(g) + l3 D(h)) / (l1 + l2 + l3)

        Source: PMANet section IV-B2; the division by the sum changes no order.

        Args:
            images: (B, 3, H, W) RGB with values 0..255, uint8 or floating.
            masks: As for `forward`; None, together with `boxes`: h falls away (the paper's PMANet with a small circle),
                and no PANet is needed.
            boxes: As for `forward`.
            weights: l1, l2, l3, each above 0; None: `retrieval_weights`.

        Returns:
            (B, D) float32; D is `feature_dim`, more when h is added to g.

        Raises:
            ValueError: In training mode, where the batch norms would depend on the other images of the batch; for masks
                and boxes that a model without partial tasks cannot use; without them for one that has nothing else.
        """
        if self.training:
            raise ValueError("embed: the model is in training mode; call model.eval() first")
        only_partial = self.config.part_head is not None and self.config.part_head.tasks == "partial"
        self._check_parts(masks, boxes, needed=only_partial and self.global_stage is None)
        maps = self._trunk_map(images)
        features: list[Tensor | None] = [None, None, None]
        if self.global_stage is not None:
            features[0] = self.global_neck.embed(self.pooling(self._global_map(maps)))
        if self.part_stage is not None:
            features[1:] = self.part_head.embed(self.part_stage(maps), self.pooling, masks, boxes)
        present = [place for place, feature in enumerate(features) if feature is not None]
        own = self.retrieval_weights() if weights is None else self.normalise_pixels.mean.new_tensor(weights)
        return weighted_concatenation([feature for feature in features if feature is not None], own[present])

    @torch.no_grad()
    def retrieval_weights(self) -> Tensor:
        """(3,) float32 weights of the distances of f_g, g and h: exp(-log variance), or 1 each."""
        if self.log_variances is None:
            return self.normalise_pixels.mean.new_ones(3)
        places = [PMNET_IDENTITY_LOSSES.index(name) for name in ("global", "main", "partial")]
        return self.log_variances[places].float().clamp(*LOG_VARIANCE_BOUNDS).neg().exp()

    def _trunk_map(self, images: Tensor) -> Tensor:
        maps = self.trunk(self.normalise_pixels(images))
        assert isinstance(maps, Tensor)
        return maps

    def _global_map(self, maps: Tensor) -> Tensor:
        assert self.global_stage is not None
        maps = self.global_convolution(self.global_stage(maps))
        assert isinstance(maps, Tensor)
        return maps

    def _check_parts(self, masks: Tensor | None, boxes: Tensor | None, *, needed: bool) -> None:
        given = masks is not None or boxes is not None
        if needed and (masks is None or boxes is None):
            missing = [name for name, value in (("masks", masks), ("boxes", boxes)) if value is None]
            raise ValueError(f"the model's partial tasks need masks and boxes, got no {' and no '.join(missing)}")
        if given and not self.needs_parts:
            raise ValueError("masks or boxes are given, but the model has no partial tasks that could use them")


def weighted_concatenation(features: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Normalised features side by side, each times the square root of its share of the weights, in float32.

    Args:
        features: (B, D_1), (B, D_2), ...
        weights: (number of features,) positive.

    Returns:
        (B, D_1 + D_2 + ...) of length 1; two rows' cosine similarity is the weighted mean of the features' own.

    >>> weighted_concatenation([torch.tensor([[2.0]]), torch.tensor([[0.0, -5.0]])], torch.tensor([9.0, 16.0]))
    tensor([[ 0.6000,  0.0000, -0.8000]])
    """
    shares = (weights.float() / weights.float().sum()).sqrt()
    return torch.cat([share * F.normalize(feature.float()) for share, feature in zip(shares, features, strict=True)], 1)
