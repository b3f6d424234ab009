"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """A second set of weights that follows the trained ones slowly and is used for evaluation.

    After update n (from 1) the average keeps `min(decay, (1 + n) / (10 + n))` of itself: a young average forgets
    the random beginning quickly, so short runs profit too. Buffers (batch-norm statistics) are averages already and are
    copied. The state is the full state dict under the model's own names.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        parameters = {name for name, _ in model.named_parameters()}
        self._followed = [name for name in self._average if name in parameters]
        self._copied = [name for name in self._average if name not in parameters]
        self._current = model.state_dict()  # shares memory with the model: looked up once, not at every update

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model's present weights."""
        self.num_updates += 1
        kept = min(self.decay, (1.0 + self.num_updates) / (10.0 + self.num_updates))
        current = self._current
        torch._foreach_lerp_(
            [self._average[name] for name in self._followed], [current[name] for name in self._followed], 1.0 - kept
        )
        if self._copied:
            torch._foreach_copy_(
                [self._average[name] for name in self._copied], [current[name] for name in self._copied]
            )

    def weights(self) -> Mapping[str, Tensor]:
        """The averaged weights, by the model's names (not copies)."""
        return self._average

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], num_updates: int) -> None:
        """Continue from saved averages.

        Raises:
            ValueError: When the names differ from the model's.
        """
        if weights.keys() != self._average.keys():
            differing = sorted(weights.keys() ^ self._average.keys())
            raise ValueError(f"the saved average belongs to another model: {differing[:5]} exist on one side only")
        for name, value in weights.items():
            self._average[name].copy_(value)
        self.num_updates = num_updates
