from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reid.contracts import Batch, LossTerms
from reid.training.optim import OptimizerConfig
from reid.training.step import (
    NonFiniteLossError,
    StepConfig,
    TrainingStep,
    describe_precision,
    prepare_model,
    resolve_precision,
)
from tests.unit.training.small_run import PlannedStream, SmallNet, build_step, differing, everything, identity_loss

SGD = OptimizerConfig(name="sgd", learning_rate=0.1)


def _halves(batch: Batch) -> list[Batch]:
    middle = len(batch.labels) // 2
    return [
        Batch(
            images=batch.images[part],
            labels=batch.labels[part],
            samples=batch.samples[part],
            keypoints=batch.keypoints[part],
        )
        for part in (slice(0, middle), slice(middle, None))
    ]


def test_accumulating_two_halves_equals_the_whole_batch_without_batch_norm() -> None:
    whole = build_step(optimizer=SGD, norm=False, dropout=0.0)
    parts = build_step(StepConfig(precision="float32", accumulate_batches=2), SGD, norm=False, dropout=0.0)
    start = everything(whole)
    batch = PlannedStream().batch(0, 0)
    expected_norm = whole.train_batch(batch)["gradient_norm"]
    first, second = _halves(batch)
    assert "gradient_norm" not in parts.train_batch(first, group_size=2, closes_group=False)
    assert differing(start, everything(parts)) == []
    actual_norm = parts.train_batch(second, group_size=2)["gradient_norm"]

    torch.testing.assert_close(actual_norm, expected_norm)
    expected, actual = everything(whole), everything(parts)
    assert (expected["model/first.weight"] - start["model/first.weight"]).abs().max() > 1e-4
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", [SGD, OptimizerConfig(learning_rate=0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("fused", [True, False])
def test_clipping_equals_torchs(optimizer: OptimizerConfig, fused: bool) -> None:
    limit = 0.05
    ours = build_step(StepConfig(precision="float32", clip_gradient_norm=limit), optimizer, dropout=0.0)
    ours._skips_by_itself = fused
    model = build_step(optimizer=optimizer, dropout=0.0)
    for index in range(4):
        batch = PlannedStream().batch(0, index)
        metrics = ours.train_batch(batch)

        identity_loss(model.bare_model(batch.images), batch.labels).total.backward()  # type: ignore[no-untyped-call]
        expected_norm = nn.utils.clip_grad_norm_(model.parameters, limit)
        model.optimizer.step()
        model.optimizer.zero_grad()
        assert expected_norm > limit
        torch.testing.assert_close(metrics["gradient_norm"], expected_norm)
    expected, actual = everything(model), everything(ours)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-6)


def _poisoned(steps: set[int], poison: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], LossTerms]:
    calls = 0

    def objective(logits: Tensor, labels: Tensor, epoch: int) -> LossTerms:
        nonlocal calls
        calls += 1
        terms = identity_loss(logits, labels)
        total = poison(terms.total) if calls - 1 in steps else terms.total
        return LossTerms(total=total, parts={"identity": total.detach()})

    return objective


def _finite_gradient_of_nan(loss: Tensor) -> Tensor:
    """A NaN that the gradient does not show: the loss itself must be looked at."""
    return loss + (loss.detach() * float("nan"))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("poison", [_finite_gradient_of_nan, lambda loss: loss * float("inf")], ids=["nan", "inf"])
def test_a_bad_step_changes_nothing_at_all(name: Any, fused: bool, poison: Callable[[Tensor], Tensor]) -> None:
    config = StepConfig(precision="float32", ema_decay=0.9)
    optimizer = OptimizerConfig(name=name, learning_rate=0.05)
    disturbed = build_step(config, optimizer, dropout=0.0, objective=_poisoned({0, 2}, poison))
    disturbed._skips_by_itself = fused
    calm = build_step(config, optimizer, dropout=0.0)
    calm._skips_by_itself = fused
    batches = [PlannedStream().batch(0, index) for index in range(5)]
    skipped = [float(disturbed.train_batch(batch)["skipped"]) for batch in batches]
    for index in (1, 3, 4):
        calm.train_batch(batches[index])

    assert skipped == [1, 0, 1, 0, 0]
    assert disturbed.num_skipped == 2
    expected, actual = everything(calm), everything(disturbed)
    assert [key for key in differing(expected, actual) if not key.endswith("num_batches_tracked")] == []
    assert disturbed.ema is not None
    assert disturbed.ema.num_updates == 3
    assert all(value.isfinite().all() for value in actual.values())


def test_batch_norm_forgets_a_batch_that_was_skipped() -> None:
    step = build_step(dropout=0.0, objective=_poisoned({0}, _finite_gradient_of_nan))
    before = step.bare_model.state_dict()["norm.running_mean"].clone()
    step.train_batch(PlannedStream().batch(0, 0))
    assert torch.equal(step.bare_model.state_dict()["norm.running_mean"], before)
    step.train_batch(PlannedStream().batch(0, 1))
    assert not torch.equal(step.bare_model.state_dict()["norm.running_mean"], before)


def test_too_many_bad_steps_in_a_row_abort_with_a_report() -> None:
    config = StepConfig(precision="float32", max_consecutive_nonfinite=3)
    step = build_step(config, objective=_poisoned({1, 2, 4, 5, 6}, _finite_gradient_of_nan))
    before = None
    for index in range(6):
        step.train_batch(PlannedStream().batch(0, index))
        before = everything(step)
    with pytest.raises(NonFiniteLossError, match=r"3 updates in a row .* \(limit 3\)") as caught:
        step.train_batch(PlannedStream().batch(0, 6))
    report = caught.value.report
    assert report["updates_skipped"] == 5
    assert report["learning_rates"] == [0.01]
    assert [entry["samples"] for entry in report["batches"]][-1] == PlannedStream().batch(0, 6).samples.tolist()
    assert report["batches"][-1]["metrics"].keys() >= {"loss", "loss/identity", "gradient_norm"}
    assert before is not None
    assert [key for key in differing(before, everything(step)) if "num_batches" not in key] == []


@pytest.mark.usefixtures("low_precision_hardware")
def test_fp16_halves_its_scale_on_overflow_and_aborts_below_one() -> None:
    step = build_step(
        StepConfig(precision="fp16"), objective=_poisoned(set(range(1, 40)), lambda loss: loss * float("inf"))
    )
    assert step.scaler is not None
    step.train_batch(PlannedStream().batch(0, 0))
    assert step.scaler.get_scale() == 65536.0
    step.train_batch(PlannedStream().batch(0, 1))
    assert step.scaler.get_scale() == 32768.0
    with pytest.raises(NonFiniteLossError, match=r"loss scale fell to 0\.5, below 1"):
        _train(step, range(2, 40))


@pytest.mark.usefixtures("low_precision_hardware")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_follows_float32(precision: Any) -> None:
    losses = {}
    for kind in ("float32", precision):
        step = build_step(StepConfig(precision=kind), OptimizerConfig(learning_rate=0.01), dropout=0.0)
        losses[kind] = [float(step.train_batch(PlannedStream().batch(0, index % 3))["loss"]) for index in range(30)]
        assert all(parameter.dtype == torch.float32 for parameter in step.parameters)
    assert losses["float32"][-1] < 0.7 * losses["float32"][0]
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.05)


def test_the_average_follows_its_formula() -> None:
    step = build_step(StepConfig(precision="float32", ema_decay=0.5))
    name = "classifier.weight"
    expected = step.bare_model.state_dict()[name].double()
    for index in range(6):
        step.train_batch(PlannedStream().batch(0, index))
        kept = min(0.5, (2 + index) / (11 + index))
        expected = kept * expected + (1 - kept) * step.bare_model.state_dict()[name].double()
    assert step.ema is not None
    torch.testing.assert_close(step.ema.weights()[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(step.ema.weights()[name], step.bare_model.state_dict()[name])
    assert torch.equal(step.ema.weights()["norm.running_var"], step.bare_model.state_dict()["norm.running_var"])


def test_synchronised_batch_norm_is_refused_on_a_processor() -> None:
    with pytest.raises(ValueError, match="sync_batchnorm works on CUDA only, this run uses cpu"):
        prepare_model(SmallNet(), StepConfig(sync_batchnorm=True), torch.device("cpu"))


def test_an_objective_with_parameters_is_refused() -> None:
    step = build_step()
    objective: Any = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="make them part of the model"):
        TrainingStep(step.model, objective, step.optimizer, step.config)


def _train(step: TrainingStep, steps: range) -> None:
    for index in steps:
        step.train_batch(PlannedStream().batch(0, index))


@pytest.mark.usefixtures("no_low_precision_hardware")
def test_a_precision_that_could_only_be_emulated_is_refused_and_auto_avoids_it() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision(StepConfig(), cpu) == "float32"
    for kind in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=f"this cpu has no {kind} arithmetic; set auto or float32"):
            resolve_precision(StepConfig.model_validate({"precision": kind}), cpu)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_takes_fp16_on_gpus_without_bf16(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str) -> None:
    def is_supported(*, including_emulation: bool) -> bool:
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert resolve_precision(StepConfig(), torch.device("cuda", 0)) == expected
    assert resolve_precision(StepConfig(precision="float32"), torch.device("cuda", 0)) == "float32"


def test_the_precision_is_described_without_the_devices() -> None:
    assert describe_precision(StepConfig(), "cuda") == "bf16 (fp16 on GPUs without it)"
    assert describe_precision(StepConfig(), "cpu") == "bf16 (float32 on processors without it)"
    assert describe_precision(StepConfig(precision="fp16"), "cuda") == "fp16"


@pytest.mark.parametrize("channels_last", [True, False])
def test_activations_have_the_memory_layout_of_the_setting(channels_last: bool) -> None:
    step = build_step(StepConfig(precision="float32", channels_last=channels_last))
    seen: list[torch.Tensor] = []
    step.bare_model.get_submodule("first").register_forward_hook(lambda module, inputs, output: seen.append(output))
    batch = PlannedStream().batch(0, 0)
    step.train_batch(replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last)))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    assert seen[0].is_contiguous() != channels_last


@pytest.mark.usefixtures("low_precision_hardware")
def test_auto_takes_bf16_where_the_hardware_has_it() -> None:
    assert resolve_precision(StepConfig(), torch.device("cpu")) == "bf16"
