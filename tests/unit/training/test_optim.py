from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reid.training.optim import (
    OptimizerConfig,
    build_optimizer,
    choose_backend,
    describe,
    parameter_groups,
    why_no_apex,
)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


def _moved(config: OptimizerConfig, steps: int = 5) -> dict[str, torch.Tensor]:
    model = _model()
    optimizer = build_optimizer(parameter_groups(model, config), config)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(memory_format=_layout(parameter))
        optimizer.step()
    return {name: value.detach().double() for name, value in model.named_parameters()}


def _layout(parameter: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if parameter.ndim == 4 else torch.contiguous_format


def _reference(config: OptimizerConfig, steps: int = 5) -> dict[str, torch.Tensor]:
    """The textbook updates, one element-wise formula at a time, in float64."""
    model = _model().double()
    rate, decay = config.learning_rate, config.weight_decay
    generator = torch.Generator().manual_seed(1)
    state: dict[str, list[torch.Tensor]] = {}
    values = {name: value.detach() for name, value in model.named_parameters()}
    for step in range(1, steps + 1):
        for name, value in values.items():
            gradient = torch.randn(value.shape, generator=generator).double()
            first, second = state.setdefault(name, [torch.zeros_like(value), torch.zeros_like(value)])
            if config.name == "adamw":
                value -= rate * decay * value
            else:
                gradient = gradient + decay * value
            if config.name == "sgd":
                first.mul_(config.momentum).add_(gradient)
                value -= rate * first
                continue
            if config.name == "rmsprop":
                second.mul_(0.99).add_(0.01 * gradient**2)
                value -= rate * gradient / (second.sqrt() + 1e-8)
                continue
            first.mul_(config.betas[0]).add_((1 - config.betas[0]) * gradient)
            second.mul_(config.betas[1]).add_((1 - config.betas[1]) * gradient**2)
            mean, square = first / (1 - config.betas[0] ** step), second / (1 - config.betas[1] ** step)
            value -= rate * mean / (square.sqrt() + 1e-8)
    return values


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_follows_the_textbook(name: Any) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.05, weight_decay=0.1)
    expected, actual = _reference(config), _moved(config)
    start = {key: value.detach().double() for key, value in _model().named_parameters()}
    for key in expected:
        assert (expected[key] - start[key]).abs().max() > 0.01
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=2e-5)


def test_decoupled_and_coupled_decay_differ() -> None:
    adam = _moved(OptimizerConfig(name="adam", learning_rate=0.05, weight_decay=0.1))
    adamw = _moved(OptimizerConfig(name="adamw", learning_rate=0.05, weight_decay=0.1))
    assert (adam["0.weight"] - adamw["0.weight"]).abs().max() > 1e-3


def test_the_kernel_is_fused_on_the_processor_too() -> None:
    config = OptimizerConfig()
    optimizer = build_optimizer(parameter_groups(_model(), config), config)
    assert describe(optimizer) == {"class": "Adam", "backend": "torch", "kernel": "torch fused"}
    assert optimizer.param_groups[0]["initial_lr"] == 3.5e-4


def test_everything_decays_unless_told_otherwise() -> None:
    assert len(parameter_groups(_model(), OptimizerConfig())) == 1
    config = OptimizerConfig(decay_norm_and_bias=False)
    optimizer = build_optimizer(parameter_groups(_model(), config), config)
    decays = {tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {(4, 3, 3, 3): 5e-4, (4,): 0.0}


def test_a_frozen_model_is_refused() -> None:
    model = _model().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        parameter_groups(model, OptimizerConfig())


def test_options_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(ValueError, match="'adam' has no momentum"):
        OptimizerConfig(momentum=0.5)
    with pytest.raises(ValueError, match="'sgd' has no betas"):
        OptimizerConfig(name="sgd", betas=(0.5, 0.9))
    with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\), got \(0\.9, 1\.0\)"):
        OptimizerConfig(betas=(0.9, 1.0))
    again = OptimizerConfig(name="sgd")
    assert OptimizerConfig.model_validate(again.model_dump()) == again


def test_apex_on_a_processor_is_refused_and_auto_takes_torch() -> None:
    with pytest.raises(ValueError, match="apex cannot be used on cpu: it works on CUDA only"):
        choose_backend(OptimizerConfig(backend="apex"), torch.device("cpu"))
    assert choose_backend(OptimizerConfig(backend="auto"), torch.device("cpu")) == "torch"


@pytest.mark.skipif(why_no_apex() is None, reason="a working apex is installed here")
def test_the_unrelated_package_called_apex_gets_a_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"not NVIDIA's \(it has no apex.optimizers\): the registry's 'apex' is another"
    ):
        choose_backend(OptimizerConfig(backend="apex"), torch.device("cuda"))
    assert choose_backend(OptimizerConfig(backend="auto"), torch.device("cuda")) == "torch"
    for name in ("apex", "apex.optimizers"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or why_no_apex() is not None, reason="needs CUDA and a built apex")
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_apex_moves_weights_as_torch_does(name: Any) -> None:
    moved = {}
    for backend in ("torch", "apex"):
        config = OptimizerConfig(name=name, learning_rate=0.05, weight_decay=0.1, backend=backend)  # type: ignore[arg-type]
        model = _model().cuda()
        optimizer = build_optimizer(parameter_groups(model, config), config)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved[backend] = [parameter.detach() for parameter in model.parameters()]
    for expected, actual in zip(moved["torch"], moved["apex"], strict=True):
        torch.testing.assert_close(actual, expected)
