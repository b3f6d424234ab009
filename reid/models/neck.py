"""Pooling, BNNeck and classifier: from a feature map to features for metric losses and logits for the ID loss."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reid.contracts import Settings


class NeckConfig(Settings):
    """How a feature map becomes one feature vector."""

    pooling: Literal["average", "gem"] = "average"
    """Global average pooling (the paper's), or generalised mean pooling with a learned exponent."""
    gem_exponent: float = Field(default=3.0, gt=0)
    """Start value of GeM's exponent; 1 is average pooling of the positive part."""
    gem_epsilon: float = Field(default=1e-6, gt=0)
    """Smaller activations are raised to this before the power."""

    @model_validator(mode="after")
    def _no_ignored_options(self) -> NeckConfig:
        fields = type(self).model_fields
        ignored = [name for name in ("gem_epsilon", "gem_exponent") if getattr(self, name) != fields[name].default]
        if self.pooling != "gem" and ignored:
            raise ValueError(f"{', '.join(ignored)} only apply to pooling 'gem', got pooling {self.pooling!r}")
        return self


class GeneralizedMeanPooling(nn.Module):
    """mean(x^p)^(1/p) over the map with a learned p, in float32 whatever the autocast dtype.

    Source: Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation" (2019), Eq. 3; one p for all
    channels.
    """

    def __init__(self, exponent: float, epsilon: float) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor(exponent))
        self.epsilon = epsilon

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C), float32 (float64 stays float64)."""
        with torch.autocast(maps.device.type, enabled=False):
            exponent = self.exponent.to(torch.promote_types(maps.dtype, torch.float32))
            powers = maps.to(exponent.dtype).clamp(min=self.epsilon).pow(exponent)
            return powers.mean((2, 3)).pow(1 / exponent)


class GlobalAveragePooling(nn.Module):
    """Mean over the map."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C) in the dtype of `maps` (summed in float32)."""
        return maps.mean((2, 3))


def build_pooling(config: NeckConfig) -> nn.Module:
    """(B, C, H, W) -> (B, C), as the config says."""
    match config.pooling:
        case "average":
            return GlobalAveragePooling()
        case "gem":
            return GeneralizedMeanPooling(config.gem_exponent, config.gem_epsilon)


class FeatureNeck(nn.Module):
    """BNNeck and classifier of features that are pooled already: as in `Neck`, without its pooling."""

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.batch_norm, self.classifier = _batch_norm_and_classifier(feature_dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Features before the batch norm (B, C) -> logits (B, num_classes)."""
        logits = self.classifier(self.batch_norm(features))
        assert isinstance(logits, Tensor)
        return logits

    def embed(self, features: Tensor) -> Tensor:
        """Features before the batch norm (B, C) -> retrieval features (B, C): after it, not yet normalised."""
        normalised = self.batch_norm(features)
        assert isinstance(normalised, Tensor)
        return normalised


class Neck(nn.Module):
    """Pooling -> features (metric losses) -> batch norm -> retrieval features -> bias-free classifier.

    Source: PPT section 3.2; Luo et al., "Bag of tricks and a strong baseline for deep person re-identification" (2019),
    section 3.5: the batch norm's shift stays 0 and is not trained, the classifier has no bias and starts at a standard
    deviation of 0.001.
    """

    def __init__(self, config: NeckConfig, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.pooling = build_pooling(config)
        self.batch_norm, self.classifier = _batch_norm_and_classifier(feature_dim, num_classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps (B, C, H, W) -> features before the batch norm (B, C), logits (B, num_classes)."""
        features = self.pooling(maps)
        return features, self.classifier(self.batch_norm(features))

    def embed(self, maps: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) -> retrieval features (B, C): after the batch norm, not yet normalised."""
        normalised = self.batch_norm(self.pooling(maps))
        assert isinstance(normalised, Tensor)
        return normalised


def _batch_norm_and_classifier(feature_dim: int, num_classes: int) -> tuple[nn.BatchNorm1d, nn.Linear]:
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}; is the training split empty?")
    batch_norm = nn.BatchNorm1d(feature_dim)
    batch_norm.bias.requires_grad_(False)
    classifier = nn.Linear(feature_dim, num_classes, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)
    return batch_norm, classifier
