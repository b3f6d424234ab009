"""The state of an optimiser as named tensors and plain numbers, independent of the order of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reid.training.optim import describe


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerState:
    """Moments and counters, by parameter name."""

    kind: str
    """Class of the optimiser."""
    backend: str
    """torch or apex: their states mean different things."""
    tensors: Mapping[str, Tensor]
    """`<key>/<parameter name>`, such as `exp_avg/layer1.0.conv1.weight`."""
    values: Mapping[str, Mapping[str, float | int | bool]]
    """Parameter name to the entries that are no tensors."""
    group_steps: tuple[int, ...]
    """Step of each group where the implementation keeps it there (apex); empty otherwise."""


def capture_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> OptimizerState:
    """The present state; tensors are not copied.

    Raises:
        ValueError: When the optimiser moves a parameter that the model does not have.
    """
    names = _parameter_names(optimizer, model)
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, float | int | bool]] = {}
    for parameter, name in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value
            elif value is not None:
                values.setdefault(name, {})[key] = value
    steps = tuple(int(group["step"]) for group in optimizer.param_groups if "step" in group)
    description = describe(optimizer)
    return OptimizerState(
        kind=description["class"], backend=description["backend"], tensors=tensors, values=values, group_steps=steps
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, state: OptimizerState) -> None:
    """Continue from a saved state; the settings (rate, betas, decay) stay those the optimiser was built with.

    Every tensor takes the memory layout of its parameter: fused kernels walk through parameter, gradient and moments
    by address, and moments in another order than a channels_last weight would be paired with the wrong elements.

    Raises:
        ValueError: When the state belongs to another optimiser or to other parameters.
    """
    description = describe(optimizer)
    if (state.kind, state.backend) != (description["class"], description["backend"]):
        raise ValueError(
            f"the checkpoint holds the state of {state.kind} ({state.backend}), this run uses {description['class']} "
            f"({description['backend']}): their states are not interchangeable, set optimizer.name and .backend back"
        )
    names = _parameter_names(optimizer, model)
    by_name = {name: parameter for parameter, name in names.items()}
    saved = {key.partition("/")[2] for key in state.tensors} | set(state.values)
    if saved - by_name.keys() or (saved and by_name.keys() - saved):
        differing = sorted(saved ^ by_name.keys())
        raise ValueError(f"the checkpoint's optimizer moved other parameters: {differing[:5]} exist on one side only")
    for path, value in state.tensors.items():
        key, _, name = path.partition("/")
        optimizer.state[by_name[name]][key] = _placed(optimizer, by_name[name], key, value)
    for name, entries in state.values.items():
        optimizer.state[by_name[name]].update(entries)
    for group, step in zip(optimizer.param_groups, state.group_steps, strict=False):
        group["step"] = step


def _placed(optimizer: torch.optim.Optimizer, parameter: Tensor, key: str, value: Tensor) -> Tensor:
    if value.shape == parameter.shape and value.is_floating_point() and key != "step":
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    on_device = any(
        parameter is candidate and (group.get("fused") or group.get("capturable"))
        for group in optimizer.param_groups
        for candidate in group["params"]
    )
    return value.to(parameter.device if on_device else "cpu", copy=True)


def _parameter_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[Any, str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    moved = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = sum(parameter not in names for parameter in moved)
    if strangers:
        raise ValueError(f"the optimizer moves {strangers} of {len(moved)} parameters that the model does not have")
    return {parameter: names[parameter] for parameter in moved}
