"""PMNet's whole loss on one process: the loops, learned weights and their stationary point, the hinge, the switches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from reid.contracts import PMNET_IDENTITY_LOSSES, PartTaskOutput, PMNetOutput
from reid.losses.pmnet import (
    PMNetLossConfig,
    fixed_weights_at,
    part_distances,
    pmnet_loss,
    uncertainty_weighted,
)
from reid.losses.visible_triplet import visible_triplet_loss
from tests.reference import losses as reference
from tests.reference import pmnet as pmnet_reference

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
LOG_VARIANCES = (0.3, -0.2, 0.9, -1.4, 0.0)


def _output(dtype: torch.dtype = torch.float32, log_variances: tuple[float, ...] | None = LOG_VARIANCES) -> PMNetOutput:
    generator = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    def task() -> PartTaskOutput:
        return PartTaskOutput(features=rows(8, 3, 4), logits=rows(8, 3, 4), joined_logits=rows(8, 4))

    learned = None if log_variances is None else torch.tensor(log_variances, requires_grad=True)
    return PMNetOutput(features=rows(8, 5), logits=rows(8, 4), main=task(), partial=task(), log_variances=learned)


def _numbers(output: PMNetOutput) -> dict[str, np.ndarray[Any, Any]]:
    main, partial = output.main, output.partial
    assert main is not None
    assert partial is not None
    assert output.features is not None
    assert output.logits is not None
    tensors = {
        "f_g": output.features, "logits": output.logits,
        "g": main.features.flatten(1), "main": main.logits, "g_logits": main.joined_logits,
        "h": partial.features.flatten(1), "partial": partial.logits, "h_logits": partial.joined_logits,
    }  # fmt: skip
    return {name: value.detach().double().numpy() for name, value in tensors.items()}


def _expected(output: PMNetOutput, margin: float | str, smoothing: float) -> dict[str, float]:
    """The unweighted parts by loops, and the distance before the hinge."""
    numbers, labels = _numbers(output), LABELS.numpy()
    summed = {name: sum(numbers[name][:, k] for k in range(3)) for name in ("main", "partial")}
    logits = [numbers["logits"], summed["main"], summed["partial"], numbers["g_logits"], numbers["h_logits"]]
    parts = {
        f"identity/{name}": reference.smoothed_cross_entropy(rows, labels, smoothing)  # type: ignore[arg-type]
        for name, rows in zip(PMNET_IDENTITY_LOSSES, logits, strict=True)
    }
    for name, key in (("global", "f_g"), ("main", "g"), ("partial", "h")):
        parts[f"triplet/{name}"] = reference.batch_hard_triplet(numbers[key], labels, margin)[0]
    parts["distance"] = pmnet_reference.part_distance(numbers["g"], numbers["h"])
    return parts


@pytest.mark.parametrize(("margin", "smoothing"), [(0.7, 0.0), ("soft", 0.2)])
def test_parts_statistics_and_total_equal_the_loops(margin: float | str, smoothing: float) -> None:
    config = PMNetLossConfig.model_validate(
        {
            "triplet_margin": margin,
            "label_smoothing": smoothing,
            "triplet_weight": 0.5,
            "part_transfer_weight": 3.0,
            "part_transfer_margin": 0.2,
        }
    )
    output = _output(torch.float64)
    terms = pmnet_loss(output, LABELS, config, epoch=0)
    expected = _expected(output, margin, smoothing)
    distance = expected.pop("distance")
    assert distance > 0.5
    expected["part_transfer"] = distance - 0.2
    assert terms.parts.keys() == expected.keys()
    for name, value in expected.items():
        assert value > 0.1, name
        assert terms.parts[name].item() == pytest.approx(value, rel=1e-10), name
        assert not terms.parts[name].requires_grad
    identity = [expected[f"identity/{name}"] for name in PMNET_IDENTITY_LOSSES]
    # The parameter is float32, so its values are not quite those of the table.
    log_variances = np.float32(LOG_VARIANCES).astype(float).tolist()
    total = pmnet_reference.uncertainty_weighted(identity, log_variances)
    assert total != pytest.approx(sum(identity), rel=0.05)
    total += 0.5 * sum(expected[f"triplet/{name}"] for name in ("global", "main", "partial"))
    total += 3.0 * expected["part_transfer"]
    assert terms.total.item() == pytest.approx(total, rel=1e-10)
    weights = [terms.statistics[f"weight/{name}"].item() for name in PMNET_IDENTITY_LOSSES]
    assert weights == pytest.approx([math.exp(-s) for s in LOG_VARIANCES])
    assert terms.statistics["part_distance"].item() == pytest.approx(distance)
    assert [terms.statistics[f"valid_anchors/{name}"].item() for name in ("global", "main", "partial")] == [1, 1, 1]
    assert len(terms.statistics) == 5 + 3 + 1


def test_branches_on_their_own_have_the_mean_of_their_losses() -> None:
    output = _output(torch.float64)
    terms = pmnet_loss(output, LABELS, PMNetLossConfig(branch_logits="each"), epoch=0)
    numbers, summed = _numbers(output), pmnet_loss(output, LABELS, PMNetLossConfig(), epoch=0).parts
    for name in ("main", "partial"):
        each = [reference.smoothed_cross_entropy(numbers[name][:, k], LABELS.numpy(), 0.0) for k in range(3)]
        assert terms.parts[f"identity/{name}_sum"].item() == pytest.approx(sum(each) / 3, rel=1e-10)
        assert sum(each) / 3 != pytest.approx(summed[f"identity/{name}_sum"].item(), rel=0.05)
        assert terms.parts[f"identity/{name}"] == summed[f"identity/{name}"]


def test_defaults_are_the_methods() -> None:
    config = PMNetLossConfig()
    assert (config.label_smoothing, config.triplet_margin, config.part_transfer_margin) == (0, 0.7, 0.05)
    assert (config.triplet_weight, config.part_transfer_weight, config.part_transfer_moves) == (1, 1, "both")
    assert config.branch_logits == "sum"
    assert (config.uncertainty_from_epoch, len(config.identity_losses), len(config.triplet_losses)) == (0, 5, 3)


def test_learned_weights_settle_at_half_the_inverse_loss() -> None:
    losses = torch.tensor([0.094, 0.113, 0.118, 0.5, 3.0], dtype=torch.float64)
    log_variances = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_variances], lr=0.02)
    for _ in range(800):
        optimizer.zero_grad()
        total, _ = uncertainty_weighted(losses, log_variances)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close((-log_variances.detach()).exp(), 1 / (2 * losses), rtol=1e-3, atol=0)
    # The weights that the paper reports, for the losses they imply.
    assert (1 / (2 * losses))[:3].tolist() == pytest.approx([5.33, 4.43, 4.25], rel=5e-3)
    at_rest = (2 * losses).log().requires_grad_()
    uncertainty_weighted(losses, at_rest)[0].backward()  # type: ignore[no-untyped-call]
    assert at_rest.grad is not None
    assert at_rest.grad.abs().max() < 1e-12


def test_the_gradient_of_learned_weights_is_that_of_finite_differences() -> None:
    losses, log_variances = np.array([0.4, 2.0, 0.1]), np.array([0.7, -1.1, 2.5])

    def value(s: np.ndarray[Any, Any]) -> float:
        return pmnet_reference.uncertainty_weighted(losses.tolist(), s.tolist())

    expected = reference.numeric_gradient(value, log_variances)
    parameter = torch.tensor(log_variances, requires_grad=True)
    rows = torch.tensor(losses, requires_grad=True)
    total, weights = uncertainty_weighted(rows, parameter)
    total.backward()  # type: ignore[no-untyped-call]
    assert total.item() == pytest.approx(value(log_variances))
    assert parameter.grad is not None
    assert rows.grad is not None
    assert np.abs(expected).min() > 0.01
    np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(rows.grad.numpy(), np.exp(-log_variances))
    assert torch.equal(weights, rows.grad)


def test_at_a_bound_only_the_gradient_that_leads_back_is_left() -> None:
    # Below: a tiny loss wants s to fall further, a large one to rise; above the other way round.
    losses = torch.tensor([0.001, 1.0, 100.0, 1.0])
    log_variances = torch.tensor([-4.5, -4.5, 4.0, 4.0], requires_grad=True)
    total, weights = uncertainty_weighted(losses, log_variances)
    total.backward()  # type: ignore[no-untyped-call]
    assert weights.tolist() == pytest.approx([math.exp(4), math.exp(4), math.exp(-4), math.exp(-4)])
    assert log_variances.grad is not None
    expected = [0.0, 0.5 - math.exp(4), 0.0, 0.5 - math.exp(-4)]
    assert log_variances.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_weight_held_at_its_bound_comes_back_when_its_loss_grows() -> None:
    log_variances = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([log_variances], lr=0.5)
    lowest = 0.0
    for loss, steps in ((1e-4, 100), (1.0, 200)):
        for _ in range(steps):
            optimizer.zero_grad()
            uncertainty_weighted(torch.tensor([loss]), log_variances)[0].backward()  # type: ignore[no-untyped-call]
            log_variances.grad.clamp_(-1, 1)  # type: ignore[union-attr]
            optimizer.step()
            lowest = min(lowest, log_variances.item())
    assert -4.3 < lowest <= -4.0
    assert log_variances.item() == pytest.approx(math.log(2), abs=1e-3)


def test_fixed_weights_hold_before_the_epoch_and_move_nothing() -> None:
    fixed = (2.0, 1.0, 0.5, 0.0, 3.0)
    config = PMNetLossConfig(uncertainty_from_epoch=30, fixed_weights=fixed, triplet_losses=(), part_transfer_weight=0)
    assert fixed_weights_at(config, 29) == fixed
    assert fixed_weights_at(config, 30) is None
    output = _output(torch.float64)
    early, late = (pmnet_loss(output, LABELS, config, epoch=epoch) for epoch in (29, 30))
    identity = [early.parts[f"identity/{name}"].item() for name in PMNET_IDENTITY_LOSSES]
    assert early.total.item() == pytest.approx(sum(w * loss for w, loss in zip(fixed, identity, strict=True)))
    assert [early.statistics[f"weight/{name}"].item() for name in PMNET_IDENTITY_LOSSES] == list(fixed)
    assert late.total.item() == pytest.approx(pmnet_reference.uncertainty_weighted(identity, list(LOG_VARIANCES)))
    assert output.log_variances is not None
    early.total.backward()
    # There, and 0: workers wait for it, and Adam leaves its parameter alone.
    assert output.log_variances.grad is not None
    assert not output.log_variances.grad.any()
    late.total.backward()
    assert output.log_variances.grad.all()
    throughout = PMNetLossConfig(
        uncertainty_from_epoch=None, fixed_weights=fixed, triplet_losses=(), part_transfer_weight=0
    )
    terms = pmnet_loss(replace(output, log_variances=None), LABELS, throughout, epoch=500)
    assert terms.total.item() == pytest.approx(early.total.item())


def test_weights_learned_by_one_side_only_are_refused() -> None:
    with pytest.raises(ValueError, match=r"is 0, but the model has no loss weights"):
        pmnet_loss(_output(log_variances=None), LABELS, PMNetLossConfig(), epoch=0)
    with pytest.raises(ValueError, match=r"is None, but the model has learned loss weights"):
        pmnet_loss(_output(), LABELS, PMNetLossConfig(uncertainty_from_epoch=None), epoch=0)


def test_part_distances_equal_the_loops_and_have_the_right_gradient() -> None:
    rows = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    actual = part_distances(rows[0], 3 * rows[1])
    expected = pmnet_reference.part_distance(rows[0].detach().numpy(), rows[1].detach().numpy())
    assert actual.mean().item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda values: part_distances(values[0], values[1]), (rows,))


def test_equal_directions_and_rows_of_zeros_have_finite_gradients() -> None:
    main = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    partial = torch.tensor([[2.0, 4.0], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    distances = part_distances(main, partial)
    distances.sum().backward()
    assert distances.tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    for tensor in (main, partial):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() <= 1


def test_the_hinge_is_over_the_batch_not_over_the_images() -> None:
    angles = torch.tensor([0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0])  # one image far apart, the mean below 0.05
    g = torch.stack((torch.ones(8), torch.zeros(8)), dim=1)[:, None].requires_grad_()
    h = torch.stack((angles.cos(), angles.sin()), dim=1)[:, None].requires_grad_()
    logits, joined = torch.zeros(8, 1, 4), torch.zeros(8, 4)
    output = PMNetOutput(
        features=None,
        logits=None,
        main=PartTaskOutput(features=g, logits=logits, joined_logits=joined),
        partial=PartTaskOutput(features=h, logits=logits, joined_logits=joined),
        log_variances=None,
    )
    quiet = {"identity_losses": (), "triplet_losses": (), "uncertainty_from_epoch": None}
    terms = pmnet_loss(output, LABELS, PMNetLossConfig.model_validate(quiet), epoch=0)
    assert terms.statistics["part_distance"].item() == pytest.approx(2 * math.sin(0.15) / 8)
    assert terms.total == 0
    strict = PMNetLossConfig.model_validate(quiet | {"part_transfer_margin": 0.01})
    terms = pmnet_loss(output, LABELS, strict, epoch=0)
    assert terms.total.item() == pytest.approx(2 * math.sin(0.15) / 8 - 0.01)
    terms.total.backward()
    for tensor in (g, h):
        assert tensor.grad is not None
        assert tensor.grad.flatten(1).any(1).tolist() == [angle > 0 for angle in angles.tolist()]


def test_a_teacher_that_does_not_give_way_gets_no_gradient_from_part_transfer() -> None:
    for moves, partial_moves in (("both", True), ("main", False)):
        output = _output(log_variances=None)
        config = PMNetLossConfig.model_validate(
            {
                "identity_losses": (),
                "triplet_losses": (),
                "uncertainty_from_epoch": None,
                "part_transfer_moves": moves,
            }
        )
        terms = pmnet_loss(output, LABELS, config, epoch=0)
        terms.total.backward()
        assert output.main is not None
        assert output.partial is not None
        assert output.main.features.grad is not None
        assert (output.partial.features.grad is not None) == partial_moves


@pytest.mark.parametrize(
    ("missing", "left"),
    [
        ({"partial": None}, {"global", "main_sum", "main"}),
        ({"main": None}, {"global", "partial_sum", "partial"}),
        ({"main": None, "partial": None}, {"global"}),
        ({"features": None, "logits": None}, {"main_sum", "partial_sum", "main", "partial"}),
    ],
)
def test_heads_that_the_model_does_not_have_fall_away(missing: dict[str, None], left: set[str]) -> None:
    output = replace(_output(torch.float64), **missing)  # type: ignore[arg-type]
    terms = pmnet_loss(output, LABELS, PMNetLossConfig(), epoch=0)
    assert {name.split("/")[1] for name in terms.parts if name.startswith("identity/")} == left
    triplets = {name.split("/")[1] for name in terms.parts if name.startswith("triplet/")}
    assert triplets == left & {"global", "main", "partial"}
    assert ("part_transfer" in terms.parts) == ({"main", "partial"} <= left)
    whole = pmnet_loss(_output(torch.float64), LABELS, PMNetLossConfig(), epoch=0)
    for name, value in terms.parts.items():
        assert value.item() == whole.parts[name].item(), name
    terms.total.backward()
    assert output.log_variances is not None
    assert output.log_variances.grad is not None
    learned = {name for name, g in zip(PMNET_IDENTITY_LOSSES, output.log_variances.grad, strict=True) if g != 0}
    assert learned == left


def test_ablations_leave_out_what_they_name() -> None:
    config = PMNetLossConfig(identity_losses=("partial", "global"), triplet_losses=("main",), part_transfer_weight=0)
    output = _output(torch.float64)
    terms = pmnet_loss(output, LABELS, config, epoch=0)
    assert set(terms.parts) == {"identity/global", "identity/partial", "triplet/main"}
    expected = _expected(output, 0.7, 0.0)
    learned = [expected["identity/global"], expected["identity/partial"]]
    log_variances = np.float32(LOG_VARIANCES).astype(float)[[0, 4]].tolist()
    total = pmnet_reference.uncertainty_weighted(learned, log_variances) + expected["triplet/main"]
    assert terms.total.item() == pytest.approx(total)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_float32_under_autocast(dtype: torch.dtype) -> None:
    output = _output(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        terms = pmnet_loss(output, LABELS, PMNetLossConfig(), epoch=0)
    terms.total.backward()
    assert terms.total.dtype == torch.float32
    expected = _expected(output, 0.7, 0.0)
    for name, value in terms.parts.items():
        assert value.item() == pytest.approx(expected.get(name, expected["distance"] - 0.05), rel=1e-5), name
    assert output.features is not None
    assert output.main is not None
    assert output.partial is not None
    for tensor in (output.features, output.logits, output.main.features, output.partial.logits, output.log_variances):
        assert tensor is not None
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"fixed_weights \(2\.0, 1\.0, 1\.0, 1\.0, 1\.0\) have no effect"):
        PMNetLossConfig(fixed_weights=(2, 1, 1, 1, 1))
    with pytest.raises(ValidationError, match=r"triplet_losses: expected each name once, got \['main', 'main'\]"):
        PMNetLossConfig(triplet_losses=("main", "main"))
    with pytest.raises(ValidationError, match="identity_losses is empty"):
        PMNetLossConfig(identity_losses=())
    with pytest.raises(ValidationError, match=r"identity_losses\.0"):
        PMNetLossConfig.model_validate({"identity_losses": ["g"]})
    output = replace(_output(log_variances=None), main=None, partial=None)
    config = PMNetLossConfig(identity_losses=("main",), triplet_losses=(), uncertainty_from_epoch=None)
    with pytest.raises(ValueError, match=r"no loss is left: identity_losses \['main'\]"):
        pmnet_loss(output, LABELS, config, epoch=0)


def test_planes_add_ppts_local_loss_with_its_weight() -> None:
    plain = _output()
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(8, 4, 6, generator=generator).requires_grad_()
    visible = torch.rand(8, 4, generator=generator) < 0.7
    both = replace(plain, plane_features=features, plane_visible=visible)
    config = PMNetLossConfig(planes_weight=0.5)
    without, terms = pmnet_loss(plain, LABELS, config, 0), pmnet_loss(both, LABELS, config, 0)
    expected, anchors = visible_triplet_loss(features, visible, LABELS, config.planes)
    assert expected > 0
    assert terms.total.item() == pytest.approx(without.total.item() + 0.5 * expected.item(), rel=1e-6)
    assert terms.parts["planes"].item() == pytest.approx(expected.item())
    assert terms.statistics["valid_anchors/front"].item() == pytest.approx(anchors[:, 0].float().mean().item())


@pytest.mark.parametrize("taken", [("global",), ("main_sum", "partial"), ()])
def test_classifiers_that_no_loss_uses_have_a_gradient_of_zero(taken: tuple[str, ...]) -> None:
    output = _output()
    uncertainty = {"uncertainty_from_epoch": 0} if taken else {"uncertainty_from_epoch": None}
    if not taken:
        output = replace(output, log_variances=None)
    config = PMNetLossConfig.model_validate({"identity_losses": taken, **uncertainty})
    pmnet_loss(output, LABELS, config, 0).total.backward()
    assert output.main is not None
    assert output.partial is not None
    logits = {
        "global": output.logits, "main_sum": output.main.logits, "partial_sum": output.partial.logits,
        "main": output.main.joined_logits, "partial": output.partial.joined_logits,
    }  # fmt: skip
    for name, values in logits.items():
        assert values is not None
        assert values.grad is not None, name
        assert bool(values.grad.any()) == (name in taken), name
