"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """A second set of weights that follows the trained ones slowly and is used for evaluation.

    After update n (from 1) the average keeps `min(decay, (1 + n) / (10 + n))` of itself: a young average forgets
    the random beginning quickly, so short runs profit too. Updates that were skipped do not count. Buffers (batch-norm
    statistics) are averages already and are copied. The state is the full state dict under the model's own names.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        parameters = {name for name, _ in model.named_parameters()}
        self._followed = [name for name in self._average if name in parameters]
        self._copied = [name for name in self._average if name not in parameters]
        self._current = model.state_dict()  # shares memory with the model: looked up once, not at every update
        device = next(iter(self._average.values())).device
        self._num_updates = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def num_updates(self) -> int:
        """Updates taken so far; waits for the device."""
        return int(self._num_updates)

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Move towards the model's present weights, without waiting for the device.

        Args:
            skipped: () bool on the model's device: the update was skipped, so the average stays where it is.
        """
        self._num_updates += ~skipped
        step = 1.0 - ((1.0 + self._num_updates) / (10.0 + self._num_updates)).clamp(max=self.decay)
        current = self._current
        average = [self._average[name] for name in self._followed]
        moves = torch._foreach_sub([current[name] for name in self._followed], average)
        torch._foreach_mul_(moves, torch.where(skipped, 0.0, step))
        torch._foreach_add_(average, moves)
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
        self._num_updates.fill_(num_updates)
