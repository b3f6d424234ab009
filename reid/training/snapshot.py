"""Everything that continues a run at its next step, taken from a training step and put back into one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from reid.process_group import world_size
from reid.training.optimizer_state import OptimizerState, capture_optimizer, restore_optimizer
from reid.training.randomness import RandomState, capture_random_state, restore_random_state
from reid.training.step import TrainingStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """The next batch of a run."""

    epoch: int = 0
    """0-based."""
    step_in_epoch: int = 0
    """Batches of this epoch that were consumed."""
    step: int = 0
    """Batches consumed since the beginning of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDescription:
    """What a checkpoint says about the run that wrote it."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration as JSON: what evaluation needs to build the model again."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """The part of it that must not change within a run. Workers, loader processes, paths, devices and logging may."""
    data_hash: str = ""
    """Hash of the data set's manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """The content of a checkpoint. Nothing in it depends on the rank or the number of workers."""

    position: Position
    model: Mapping[str, Tensor]
    """The state dict of the bare model."""
    optimizer: OptimizerState
    random: RandomState
    run: RunDescription
    average: Mapping[str, Tensor] | None = None
    """The moving average of the weights, where one is kept."""
    average_updates: int = 0
    """Number of updates of that average."""
    scaler: Mapping[str, float | int] | None = None
    """The fp16 loss scaler."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Totals since the beginning of the run, so that they survive a restart."""
    learning_rates: tuple[float, ...] = ()
    """Rate of each parameter group at the last step, for people: the schedule is a function of the position."""
    world_size: int = 1
    """Number of workers that wrote it; another number may continue."""


def take_snapshot(
    step: TrainingStep, position: Position, run: RunDescription, counters: Mapping[str, int] | None = None
) -> CheckpointState:
    """The present state of a run; tensors are not copied, so save it before the next step.

    Args:
        step: What learns.
        position: The next batch.
        run: What it is.
        counters: Totals since the beginning of the run to keep, beside those of the step.
    """
    return CheckpointState(
        position=position,
        model=step.bare_model.state_dict(),
        optimizer=capture_optimizer(step.optimizer, step.bare_model),
        random=capture_random_state(),
        run=run,
        average=None if step.ema is None else step.ema.weights(),
        average_updates=0 if step.ema is None else step.ema.num_updates,
        scaler=None if step.scaler is None else step.scaler.state_dict(),
        counters={**(counters or {}), "updates_skipped": step.num_skipped},
        learning_rates=tuple(float(group["lr"]) for group in step.optimizer.param_groups),
        world_size=world_size(),
    )


def restore_snapshot(step: TrainingStep, state: CheckpointState) -> None:
    """Put a run's state into a freshly built training step; call it last, just before `fit`.

    Raises:
        ValueError: When model, optimiser, precision or average are not those of the checkpoint. (`auto` may have come
            to another precision on other hardware: a warning says so.)
    """
    _refuse_other_model(step, state)
    if (state.scaler is None) != (step.scaler is None):
        written = f"the checkpoint was written {'without' if state.scaler is None else 'with'} an fp16 loss scaler"
        if step.config.precision != "auto":
            raise ValueError(
                f"{written}, this run uses precision {step.config.precision}: set training.step.precision back"
            )
        logger.warning("%s, on other hardware: training goes on in %s", written, step.precision)
    if (state.average is None) != (step.ema is None):
        raise ValueError(
            f"the checkpoint was written {'without' if state.average is None else 'with'} a moving average of the "
            f"weights, this run has ema_decay {step.config.ema_decay}: set step.ema_decay back"
        )
    restore_optimizer(step.optimizer, step.bare_model, state.optimizer)
    step.bare_model.load_state_dict(dict(state.model))
    step.forget_skipped_state()
    if step.scaler is not None and state.scaler is not None:
        step.scaler.load_state_dict(dict(state.scaler))
    if step.ema is not None and state.average is not None:
        step.ema.restore(state.average, state.average_updates)
    step.continue_count(state.counters.get("updates_skipped", 0))
    restore_random_state(state.random)


def _refuse_other_model(step: TrainingStep, state: CheckpointState) -> None:
    own = {name: tuple(value.shape) for name, value in step.bare_model.state_dict().items()}
    saved = {name: tuple(value.shape) for name, value in state.model.items()}
    if own == saved:
        return
    problems = [f"{name}: only in the checkpoint" for name in sorted(saved.keys() - own.keys())]
    problems += [f"{name}: only in this model" for name in sorted(own.keys() - saved.keys())]
    problems += [
        f"{name}: {saved[name]} in the checkpoint, {own[name]} here"
        for name in sorted(own.keys() & saved.keys())
        if own[name] != saved[name]
    ]
    more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
    raise ValueError("the checkpoint is of another model\n  " + "\n  ".join(problems[:8]) + more)
