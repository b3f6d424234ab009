"""Learning rate over a run: warm-up, then milestones or a cosine. A pure function of the place in the run."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from reid.contracts import Settings


class ScheduleConfig(Settings):
    """How the learning rate moves (METHOD 1.5); epochs are 0-based and may be fractions."""

    shape: Literal["milestones", "cosine"] = "milestones"
    """What follows the warm-up: steps down at milestones, or half a cosine down to the floor at the end of the run."""
    warmup_epochs: float = Field(default=10.0, ge=0)
    """Length of the linear warm-up; 0 turns it off."""
    warmup_factor: float = Field(default=0.1, gt=0, le=1)
    """Share of the full learning rate in the very first epoch: 0.1 gives the paper's 3.5e-5."""
    milestone_every_epochs: float = Field(default=30.0, gt=0)
    """Distance between steps down, counted from the end of the warm-up; only with shape milestones."""
    milestones: tuple[float, ...] | None = None
    """Epochs of the run (warm-up included) at which the rate steps down, in place of regular distances."""
    milestone_factor: float = Field(default=0.1, gt=0, lt=1)
    """What each step down multiplies the rate by; only with shape milestones."""
    floor: float | None = Field(default=3.5e-7, ge=0)
    """The rate never falls below this after the warm-up; None is the literal form of the paper (no floor)."""
    per_step: bool = False
    """Move the rate at every step; the default moves it once per epoch, as the paper does."""

    @model_validator(mode="after")
    def _refuse_ignored_options(self) -> Self:
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise strictly, got {self.milestones}")
        if self.shape == "cosine":
            defaults = {name: ScheduleConfig.model_fields[name].default for name in _MILESTONE_FIELDS}
            ignored = [name for name, default in defaults.items() if getattr(self, name) != default]
            if ignored:
                raise ValueError(
                    f"shape 'cosine' has no milestones: remove {', '.join(ignored)}, or, where they are a recipe's, set"
                    " milestones to null"
                )
        return self


_MILESTONE_FIELDS = ("milestone_every_epochs", "milestones", "milestone_factor")


def learning_rate_at(config: ScheduleConfig, base: float, epoch: float, total_epochs: float) -> float:
    """The learning rate at a place in the run.

    PPT, section 4.2: 3.5e-5 in the first epoch, rising linearly to 3.5e-4 in the first ten, x0.1 every 30 epochs. Ours
    counts the thirty from the end of the warm-up and stops at a floor: without it the rates of the last hundred epochs
    (3.5e-9 and less) move nothing.

    Args:
        config: The shape.
        base: The full learning rate, reached at the end of the warm-up.
        epoch: Epochs since the beginning of the run, a fraction inside an epoch.
        total_epochs: Length of the run in epochs; it may be shorter than the warm-up.

    Returns:
        The learning rate, never above `base`.

    >>> [round(learning_rate_at(ScheduleConfig(), 3.5e-4, e, 240), 10) for e in (0, 5, 10, 40, 70, 239)]
    [3.5e-05, 0.0001925, 0.00035, 3.5e-05, 3.5e-06, 3.5e-07]
    """
    if epoch < config.warmup_epochs:
        return base * (config.warmup_factor + (1.0 - config.warmup_factor) * epoch / config.warmup_epochs)
    floor = 0.0 if config.floor is None else min(config.floor, base)
    match config.shape:
        case "milestones":
            return max(floor, base * config.milestone_factor ** _passed_milestones(config, epoch))
        case "cosine":
            length = max(total_epochs - config.warmup_epochs, 1e-12)
            progress = min(1.0, (epoch - config.warmup_epochs) / length)
            return floor + (base - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _passed_milestones(config: ScheduleConfig, epoch: float) -> int:
    if config.milestones is not None:
        return sum(epoch >= milestone for milestone in config.milestones)
    return math.floor((epoch - config.warmup_epochs) / config.milestone_every_epochs)


def place_in_run(config: ScheduleConfig, epoch: int, step_in_epoch: int, steps_in_epoch: int) -> float:
    """The `epoch` that `learning_rate_at` takes: whole numbers, or fractions when the rate moves at every step."""
    return epoch + step_in_epoch / steps_in_epoch if config.per_step else float(epoch)
