"""Identity classification loss: cross-entropy with label smoothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.losses.precision import at_least_float32


def identity_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy against (1 - smoothing) * one-hot + smoothing / num_classes, at least in float32.

    Source: PPT Eq. 6 (the ID term) with the smoothing of Szegedy et al. (2016): spread over all classes, the true one
    included. Some toolboxes spread it over the wrong classes only, which gives other values.

    Args:
        logits: (B, num_classes), any floating dtype.
        labels: (B,) int64 class of each row.
        smoothing: 0 (none) up to below 1.

    Returns:
        Scalar: the mean over the rows given. Over workers with equally many rows, the average is the global mean.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
