"""Batch-hard triplet: loops, golden files, duplicates, half precision, and mistakes that must show."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.losses.triplet import grouped_triplet_loss, hardest_triplets, triplet_loss
from tests.reference.losses import batch_hard_triplet, numeric_gradient

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden"
MARGINS = [0.3, 1.0, "soft"]


def _batch(num_rows: int, dim: int, num_identities: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    return features, torch.randint(num_identities, (num_rows,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 14),
    dim=st.integers(1, 5),
    num_identities=st.integers(1, 6),
    seed=st.integers(0, 2**20),
    margin=st.sampled_from(MARGINS),
)
def test_loss_and_valid_anchors_equal_the_loops(
    num_rows: int, dim: int, num_identities: int, seed: int, margin: float
) -> None:
    features, labels = _batch(num_rows, dim, num_identities, seed)
    expected, expected_anchors = batch_hard_triplet(features.numpy(), labels.numpy(), margin)
    actual, valid = triplet_loss(features, labels, margin)
    assert actual.item() == pytest.approx(expected, abs=1e-12)
    assert valid.nonzero().flatten().tolist() == expected_anchors


@pytest.mark.parametrize("margin", MARGINS)
def test_gradient_equals_central_differences(margin: float) -> None:
    features, labels = _batch(9, 4, 3, seed=3)
    expected = numeric_gradient(lambda x: batch_hard_triplet(x, labels.numpy(), margin)[0], features.numpy())
    assert np.abs(expected).max() > 0.01
    features.requires_grad_()
    triplet_loss(features, labels, margin)[0].backward()
    np.testing.assert_allclose(features.grad, expected, atol=1e-8)
    assert torch.autograd.gradcheck(lambda x: triplet_loss(x, labels, margin)[0], (features,))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files in {GOLDEN}")
@pytest.mark.parametrize("name", ["all_equal_d16", "duplicates_d16", "one_id_d16", "pk_4x4_d8", "singletons_d16"])
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_agrees_with_the_golden_files(name: str, margin: float, dtype: torch.dtype, tolerance: float) -> None:
    golden = np.load(GOLDEN / f"triplet_{name}_{margin}.npz", allow_pickle=False)
    features = torch.tensor(golden["features"], dtype=dtype, requires_grad=True)
    actual, _ = triplet_loss(features, torch.tensor(golden["labels"]), margin)
    actual.backward()
    # `pml_*` leaves out anchors without a positive; the unprefixed fields of the singletons count them.
    assert actual.item() == pytest.approx(float(golden["pml_loss64"]), abs=tolerance)
    np.testing.assert_allclose(features.grad, golden["pml_grad64"], atol=tolerance)
    if name != "singletons_d16":
        assert actual.item() == pytest.approx(float(golden["loss"]), abs=1e-6)


def test_the_usual_mistakes_give_other_values() -> None:
    features, labels = _batch(8, 3, 5, seed=1)
    expected, anchors = batch_hard_triplet(features.numpy(), labels.numpy(), 0.3)
    assert 0 < len(anchors) < 8
    actual, _ = triplet_loss(features, labels, 0.3)
    assert actual.item() == pytest.approx(expected)
    for mistake in ({"anchor_is_positive": True}, {"count_every_anchor": True}):
        wrong, _ = batch_hard_triplet(features.numpy(), labels.numpy(), 0.3, **mistake)
        assert abs(wrong - actual.item()) > 1e-2, mistake


def test_one_identity_alone_gives_zero_with_a_graph() -> None:
    features, _ = _batch(6, 4, 1, seed=0)
    features.requires_grad_()
    loss, valid = triplet_loss(features, torch.zeros(6, dtype=torch.int64), 0.3)
    loss.backward()
    assert loss.item() == 0
    assert not valid.any()
    assert features.grad is not None
    assert features.grad.abs().sum() == 0


def test_near_duplicates_far_from_the_origin_keep_their_distances_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 1, 64, generator=generator)
    features = (centres + 1e-3 * torch.randn(8, 4, 64, generator=generator)).flatten(0, 1) + 100
    labels = torch.arange(8).repeat_interleave(4)
    expected, _ = batch_hard_triplet(features.double().numpy(), labels.numpy(), 20.0)
    actual, _ = triplet_loss(features, labels, 20.0)
    products = features @ features.T
    squares = products.diagonal()[:, None] + products.diagonal() - 2 * products
    blurred = (squares - torch.cdist(features.double(), features.double()).square()).abs().max()
    assert blurred > 0.05  # what the products alone would give: 500 times a positive's squared distance
    assert actual.item() == pytest.approx(expected, abs=1e-3)


def test_duplicates_give_a_finite_gradient() -> None:
    features = torch.ones(8, 16, requires_grad=True)
    triplet_loss(features, torch.arange(8) // 2, "soft")[0].backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_left_unmodified(dtype: torch.dtype) -> None:
    features, labels = _batch(16, 8, 4, seed=2)
    features = (100 * features).to(dtype).requires_grad_()
    before = features.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = triplet_loss(features, labels, 0.3)
    loss.backward()
    expected, _ = batch_hard_triplet(before.double().numpy(), labels.numpy(), 0.3)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert torch.equal(features, before)


def test_the_order_of_the_batch_does_not_matter() -> None:
    features, labels = _batch(12, 4, 4, seed=5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    features.requires_grad_()
    triplet_loss(features, labels, 0.3)[0].backward()
    shuffled = features.detach()[order].requires_grad_()
    triplet_loss(shuffled, labels[order], 0.3)[0].backward()
    assert features.grad is not None
    torch.testing.assert_close(shuffled.grad, features.grad[order])


def test_features_that_are_not_a_number_show_in_the_loss() -> None:
    features, labels = _batch(8, 4, 2, seed=0)
    features[3, 1] = torch.nan
    assert triplet_loss(features, labels, 0.3)[0].isnan()


def test_groups_are_mined_independently() -> None:
    features = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) // 2
    together = hardest_triplets(features, labels)
    for group in range(3):
        alone = hardest_triplets(features[group], labels)
        assert torch.equal(together.positives[group], alone.positives)
        assert torch.equal(together.negatives[group], alone.negatives)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_each_group_has_the_loss_and_the_scaled_gradient_it_has_alone(
    margin: float, reduction: Literal["mean", "sum"]
) -> None:
    features = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features.requires_grad_()
    labels = torch.arange(9) % 4
    scales = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    losses, valid = grouped_triplet_loss(features, labels, margin, reduction=reduction)
    (losses * scales).sum().backward()
    assert features.grad is not None
    for group in range(3):
        alone = features[group].detach().requires_grad_()
        loss, valid_alone = triplet_loss(alone, labels, margin)
        num_terms = valid_alone.sum() if reduction == "sum" else 1
        (scales[group] * num_terms * loss).backward()
        assert alone.grad is not None
        assert alone.grad.abs().max() > 0.01
        torch.testing.assert_close(losses[group], num_terms * loss)
        torch.testing.assert_close(features.grad[group], alone.grad)
        assert torch.equal(valid[group], valid_alone)


def test_a_second_backward_gives_the_same_gradient() -> None:
    features, labels = _batch(12, 4, 4, seed=6)
    features.requires_grad_()
    loss, _ = triplet_loss(features, labels, 0.3)
    (first,) = torch.autograd.grad(loss, features, retain_graph=True)
    (second,) = torch.autograd.grad(loss, features)
    assert first.abs().max() > 0
    assert torch.equal(first, second)
