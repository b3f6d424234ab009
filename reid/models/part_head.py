"""PMNet's part head: K branches, each with a main task on the whole map and a partial task on one part of it."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reid.contracts import PartTaskOutput, Settings
from reid.models.convolution import convolution_block
from reid.models.neck import FeatureNeck
from reid.models.part_attention import PartAttentionConfig, build_part_attention
from reid.models.part_crops import crop_boxes, masks_on_map
from reid.parts import MAX_PARTS


class PartHeadConfig(Settings):
    """The part head of PMNet (METHOD 2.2)."""

    num_parts: int = Field(default=3, ge=1, le=MAX_PARTS)
    """K: branches, one for each box of an image."""
    boxes: Literal["located", "stripes"] = "located"
    """Where the parts are: in the boxes that the shards hold (PANet's), or in uniform stripes (Table III, R1)."""
    branch_channels: int = Field(default=512, ge=8)
    """Of each branch's map and feature; g and h have K times as many."""
    tasks: Literal["main_and_partial", "main", "partial"] = "main_and_partial"
    """main_and_partial: the paper's. partial: K plain branches, one feature of each part, so that masks and boxes are
    needed at test time too (Table III, R2). main: K branches on the whole map; masks and boxes are never needed."""
    attention: PartAttentionConfig = PartAttentionConfig()
    """Of each branch."""
    share_attention: bool = True
    """Both tasks of a branch go through one attention module; false: one each (Table V). The branch's 1x1 convolution
    is shared in any case: what is cropped is its output."""

    @model_validator(mode="after")
    def _refuse_ignored_options(self) -> Self:
        if not self.share_attention and self.tasks != "main_and_partial":
            raise ValueError(f"share_attention is false, but with tasks {self.tasks!r} there is nothing to share")
        if not self.share_attention and self.attention.kind == "none":
            raise ValueError("share_attention is false, but attention 'none' has no parameters to share")
        if self.boxes == "stripes" and self.tasks == "main":
            raise ValueError("boxes are stripes, but with tasks 'main' no part is looked at: remove one of the two")
        return self


class PartHead(nn.Module):
    """From a map to the features and logits of the main and the partial tasks.

    Source: PMANet section III-B3. Where the paper is silent: the 1x1 convolutions of the K branches are one layer (the
    same numbers), and an attention module that both tasks of a branch share sees their maps as one batch. Its batch
    norms so train with the statistics of what they will meet, instead of with those of each task alone while the
    running statistics mix the two.

    What a partial task does not see counts as 0. Neither the map of a branch nor attention goes below 0, so a cell
    outside the foreground never beats one inside: the maximum over the map is that over the foreground inside the box.
    Where a channel answers nowhere in there, or no foreground is left, the feature is 0 and nothing is learned from it.
    """

    def __init__(self, config: PartHeadConfig, channels_in: int, num_classes: int) -> None:
        """Build the head.

        Args:
            config: Of the head.
            channels_in: Of the map that it is given.
            num_classes: Identities of the training split.
        """
        super().__init__()
        self.config = config
        num_parts, channels = config.num_parts, config.branch_channels

        def attention() -> nn.ModuleList:
            return nn.ModuleList(build_part_attention(config.attention, channels) for _ in range(num_parts))

        def task() -> PartTask:
            return PartTask(num_parts, channels, num_classes)

        self.convolution = convolution_block(channels_in, num_parts * channels, 1)
        self.attention = attention()
        self.partial_attention = None if config.share_attention else attention()
        self.main = None if config.tasks == "partial" else task()
        self.partial = None if config.tasks == "main" else task()

    def forward(
        self, maps: Tensor, pooling: nn.Module, masks: Tensor | None = None, boxes: Tensor | None = None
    ) -> tuple[PartTaskOutput | None, PartTaskOutput | None]:
        """Features and logits of both tasks, as `features` makes them."""
        main, partial = self.features(maps, pooling, masks, boxes)
        return (
            None if main is None or self.main is None else self.main(main),
            None if partial is None or self.partial is None else self.partial(partial),
        )

    def embed(
        self, maps: Tensor, pooling: nn.Module, masks: Tensor | None = None, boxes: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Retrieval features g and h, after their batch norms, not yet normalised: (B, K * D) each."""
        main, partial = self.features(maps, pooling, masks, boxes)
        return (
            None if main is None or self.main is None else self.main.embed(main),
            None if partial is None or self.partial is None else self.partial.embed(partial),
        )

    def features(
        self, maps: Tensor, pooling: nn.Module, masks: Tensor | None, boxes: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Pooled features of both tasks.

        Args:
            maps: (B, channels_in, h, w).
            pooling: (B, C, h, w) -> (B, C), of the main tasks.
            masks: (B, 1, H, W) 0/1 vehicle foreground; None, together with `boxes`: no partial tasks.
            boxes: (B, K, 4) left, top, right, bottom as shares 0..1 of the image.

        Returns:
            (B, K, D) of the main and of the partial tasks, None where there are none.

        Raises:
            ValueError: When only one of `masks` and `boxes` is given or their shapes do not fit.
        """
        whole, parts = self.maps(maps, masks, boxes)
        main = None if whole is None else torch.stack([pooling(part) for part in whole], dim=1)
        partial = None if parts is None else torch.stack([part.amax((2, 3)) for part in parts], dim=1)
        return main, partial

    def maps(
        self, maps: Tensor, masks: Tensor | None, boxes: Tensor | None
    ) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """The K maps (B, D, h, w) behind attention of the main and of the partial tasks; see `features`."""
        branches, crops = self.inputs(maps, masks, boxes)
        whole: list[Tensor] | None = None if self.main is None else []
        parts: list[Tensor] | None = None if crops is None else []
        for k, attention in enumerate(self.attention):
            if whole is not None and parts is not None and crops is not None and self.partial_attention is None:
                main, partial = attention(torch.cat((branches[:, k], crops[:, k]))).chunk(2)
                whole.append(main)
                parts.append(partial)
                continue
            if whole is not None:
                whole.append(attention(branches[:, k]))
            if parts is not None and crops is not None:
                own = attention if self.partial_attention is None else self.partial_attention[k]
                parts.append(own(crops[:, k]))
        return whole, parts

    def inputs(self, maps: Tensor, masks: Tensor | None, boxes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What attention of the main and of the partial tasks is given: (B, K, D, h, w) each; see `features`."""
        branches = self.convolution(maps).unflatten(1, (self.config.num_parts, -1))
        return branches, None if self.partial is None else self._crops(branches, masks, boxes)

    def _crops(self, branches: Tensor, masks: Tensor | None, boxes: Tensor | None) -> Tensor | None:
        """(B, K, D, h, w), or None when there are no masks and no boxes."""
        if masks is None and boxes is None:
            return None
        if masks is None or boxes is None:
            raise ValueError(f"partial tasks need masks and boxes, got no {'masks' if masks is None else 'boxes'}")
        batch, num_parts, _, height, width = branches.shape
        if boxes.shape != (batch, num_parts, 4):
            raise ValueError(
                f"boxes: expected {(batch, num_parts, 4)} for {batch} images of {num_parts} parts, got"
                f" {tuple(boxes.shape)}"
            )
        if masks.ndim != 4 or masks.shape[:2] != (batch, 1):
            raise ValueError(f"masks: expected ({batch}, 1, H, W), got {tuple(masks.shape)}")
        foreground = branches * masks_on_map(masks, height, width).unsqueeze(1)
        crops = crop_boxes(foreground.flatten(0, 1), boxes.flatten(0, 1))
        return crops.view(batch, num_parts, -1, height, width)


class PartTask(nn.Module):
    """BNNecks and classifiers of one task: one pair for each branch and one for the branches' concatenation."""

    def __init__(self, num_parts: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.necks = nn.ModuleList(FeatureNeck(channels, num_classes) for _ in range(num_parts))
        self.joined_neck = FeatureNeck(num_parts * channels, num_classes)

    def forward(self, features: Tensor) -> PartTaskOutput:
        """(B, K, D) pooled features -> features and logits."""
        logits = [neck(part) for neck, part in zip(self.necks, features.unbind(1), strict=True)]
        return PartTaskOutput(
            features=features, logits=torch.stack(logits, dim=1), joined_logits=self.joined_neck(features.flatten(1))
        )

    def embed(self, features: Tensor) -> Tensor:
        """(B, K, D) pooled features -> (B, K * D) after the batch norm of the concatenation."""
        embedded = self.joined_neck.embed(features.flatten(1))
        assert isinstance(embedded, Tensor)
        return embedded
