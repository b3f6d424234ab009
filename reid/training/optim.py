"""Optimisers: torch's fused Adam, AdamW and SGD, RMSprop, or apex's where it is installed and asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterable
from typing import Any, Final, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from reid.contracts import Settings

logger = logging.getLogger(__name__)

_TORCH_SQUARE_DECAY: Final = 0.99
_LOSS_WEIGHTS: Final = "log_variances"
"""Name of the parameter, wherever in a model, that weighs losses (PMANet, Eq. 7)."""


class OptimizerConfig(Settings):
    """The optimiser (METHOD 1.5)."""

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    """adam adds the weight decay to the gradient (as the paper's baseline does), adamw decouples it; rmsprop is what
    the keypoint detector's paper uses."""
    learning_rate: float = Field(default=3.5e-4, gt=0)
    """The full rate, reached at the end of the warm-up."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty (adam, sgd, rmsprop) or decay per step relative to the rate (adamw)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment; adam and adamw only."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """sgd only."""
    square_decay: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the mean squared gradient; rmsprop only. null: 0.99, the default of torch, in the detector's paper
    too."""
    decay_norm_and_bias: bool = True
    """Weight decay on batch-norm parameters and biases too. The paper is silent; its baseline decays everything."""
    loss_weight_rate: float = Field(default=1.0, gt=0)
    """Rate of learned loss weights (PMANet's log variances) as a multiple of `learning_rate`. Adam moves each by about
    its rate a step, so short runs need a larger one to get anywhere."""
    backend: Literal["torch", "apex", "auto"] = "torch"
    """torch: the fused kernel where there is one. apex: NVIDIA's fused optimisers (CUDA only), refused where missing.
    auto: apex where it is usable, else torch. With float32 weights the numbers are alike, the states of the two are not
    interchangeable: a run cannot be resumed with the other."""

    @model_validator(mode="after")
    def _refuse_ignored_options(self) -> Self:
        used = {"sgd": "momentum", "rmsprop": "square_decay"}.get(self.name, "betas")
        for ignored in {"betas", "momentum", "square_decay"} - {used}:
            if getattr(self, ignored) != OptimizerConfig.model_fields[ignored].default:
                raise ValueError(f"optimizer '{self.name}' has no {ignored}: remove it")
        if self.name == "rmsprop" and self.backend == "apex":
            raise ValueError("apex has no rmsprop: set optimizer.backend to torch")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters of a model as groups for `build_optimizer`.

    One group by default; with `decay_norm_and_bias: false` the vectors and scalars (batch norm, biases) form a second
    one without weight decay. Learned loss weights are always the last group, never decayed, at a rate of their own.

    Raises:
        ValueError: When nothing is trainable, or loss weights have a rate but are not learned.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameters: everything is frozen")
    loss_weights = [parameter for name, parameter in named if name.rpartition(".")[2] == _LOSS_WEIGHTS]
    trainable = [parameter for name, parameter in named if name.rpartition(".")[2] != _LOSS_WEIGHTS]
    if not loss_weights and config.loss_weight_rate != 1.0:
        raise ValueError(
            f"optimizer.loss_weight_rate is {config.loss_weight_rate:g}, but this run learns no loss weights: remove it"
        )
    groups: list[dict[str, Any]] = [{"params": trainable}]
    if not config.decay_norm_and_bias:
        decayed = [parameter for parameter in trainable if parameter.ndim > 1]
        plain = [parameter for parameter in trainable if parameter.ndim <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    groups.append({"params": loss_weights, "weight_decay": 0.0, "lr": config.learning_rate * config.loss_weight_rate})
    return [group for group in groups if group["params"]]


def build_optimizer(groups: Iterable[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimiser over groups of parameters; the log says which implementation it is.

    A group may set its own `lr` and `weight_decay`. Each group remembers its full rate as `initial_lr`.

    Args:
        groups: As `parameter_groups` makes them; the parameters already on their device.
        config: Kind and numbers.

    Returns:
        The optimiser.

    Raises:
        ValueError: When apex is asked for and cannot be used here.
    """
    groups = list(groups)
    device = groups[0]["params"][0].device
    backend = choose_backend(config, device)
    optimizer = _apex_optimizer(groups, config) if backend == "apex" else _torch_optimizer(groups, config)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    logger.info("optimizer: %s (%s, on %s)", type(optimizer).__name__, describe(optimizer)["kernel"], device.type)
    return optimizer


def choose_backend(config: OptimizerConfig, device: torch.device) -> Literal["torch", "apex"]:
    """Which implementation a run on `device` uses.

    Raises:
        ValueError: When apex is asked for and cannot be used here.
    """
    if config.backend == "torch" or config.name == "rmsprop":
        return "torch"
    reason = "it works on CUDA only" if device.type != "cuda" else why_no_apex()
    if reason is None:
        return "apex"
    if config.backend == "apex":
        raise ValueError(f"optimizer.backend: apex cannot be used on {device.type}: {reason}. Set it to torch or auto")
    logger.info("optimizer.backend auto: torch, not apex (%s)", reason)
    return "torch"


def why_no_apex() -> str | None:
    """The reason why apex's optimisers cannot be used on this machine, or None when they can.

    The test is what is needed, the Python class and the compiled `amp_C`, not a version: the registry's package of the
    same name is an unrelated project, and a source build without CUDA extensions imports but does not step.
    """
    if importlib.util.find_spec("apex") is None:
        return "apex is not installed"
    version = _apex_version()
    try:
        optimizers = importlib.import_module("apex.optimizers")
    except ImportError:
        return (
            f"the installed 'apex' {version} is not NVIDIA's (it has no apex.optimizers): the registry's 'apex' "
            "is another project; uninstall it and build https://github.com/NVIDIA/apex with APEX_CPP_EXT=1 "
            "APEX_CUDA_EXT=1"
        )
    missing = [name for name in ("FusedAdam", "FusedSGD") if not hasattr(optimizers, name)]
    if missing:
        return f"the installed apex {version} has no {' and no '.join(missing)}"
    if importlib.util.find_spec("amp_C") is None:
        return f"apex {version} was built without its CUDA extension amp_C: rebuild it with APEX_CUDA_EXT=1"
    return None


def _apex_version() -> str:
    try:
        return importlib.metadata.version("apex")
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"


def describe(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Class, backend and kernel of an optimiser. The first two must agree when a run is resumed, the kernel may differ.

    >>> describe(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, fused=True))
    {'class': 'SGD', 'backend': 'torch', 'kernel': 'torch fused'}
    """
    backend = "apex" if type(optimizer).__module__.startswith("apex") else "torch"
    fused = backend == "torch" and all(group.get("fused") for group in optimizer.param_groups)
    kernel = {"apex": "apex fused", "torch": "torch fused" if fused else "torch"}[backend]
    return {"class": type(optimizer).__name__, "backend": backend, "kernel": kernel}


def _torch_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    fused = _fused_works(groups)
    match config.name:
        case "adam":
            return torch.optim.Adam(
                groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=fused
            )
        case "adamw":
            return torch.optim.AdamW(
                groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=fused
            )
        case "sgd":
            optimizer = torch.optim.SGD(
                groups,
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                fused=fused,
            )
            if fused and config.momentum > 0:
                _start_momentum_at_zero(optimizer)
            return optimizer
        case "rmsprop":
            return torch.optim.RMSprop(
                groups,
                lr=config.learning_rate,
                alpha=_TORCH_SQUARE_DECAY if config.square_decay is None else config.square_decay,
                weight_decay=config.weight_decay,
            )


def _start_momentum_at_zero(optimizer: torch.optim.SGD) -> None:
    """Give every parameter a zero momentum buffer before the first step: the same numbers, as dampening is 0.

    The fused kernel allocates the buffers uninitialised at its first step; when that step is skipped on the device (a
    non-finite loss), torch keeps them and the next step would start from garbage.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _fused_works(groups: list[dict[str, Any]]) -> bool:
    """Whether torch's fused kernels take these parameters: floating point, all on one device that has the kernels."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    kinds = {parameter.device.type for parameter in parameters}
    return (
        len(kinds) == 1 and kinds <= {"cpu", "cuda"} and all(parameter.is_floating_point() for parameter in parameters)
    )


def _apex_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    optimizers = importlib.import_module("apex.optimizers")
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        optimizer = optimizers.FusedSGD(
            groups, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    else:
        optimizer = optimizers.FusedAdam(
            groups,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            adam_w_mode=config.name == "adamw",
        )
    return optimizer
