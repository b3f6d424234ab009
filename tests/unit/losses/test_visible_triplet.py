"""Dynamic batch-hard triplet per plane: loops, who counts, reductions, and no gradient through what is invisible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.losses.visible_triplet import VisibleTripletConfig, normalise, visible_triplet_loss
from tests.reference.losses import visible_triplet


def _batch(num_rows: int, seed: int, shown: float = 0.6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(num_rows, 4, generator=generator) < shown
    features = torch.randn(num_rows, 4, 5, generator=generator, dtype=torch.float64) * visible[..., None]
    return features, visible, torch.randint(3, (num_rows,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 12),
    seed=st.integers(0, 2**20),
    shown=st.floats(0, 1),
    reduction=st.sampled_from(["mean", "sum"]),
    normalised=st.booleans(),
    margin=st.sampled_from([0.3, "soft"]),
)
def test_loss_equals_the_loops(
    num_rows: int, seed: int, shown: float, reduction: str, normalised: bool, margin: float | str
) -> None:
    features, visible, labels = _batch(num_rows, seed, shown)
    config = VisibleTripletConfig.model_validate(
        {"reduction": reduction, "normalised": normalised, "margin": margin, "plane_weights": (0.5, 0.4, 0.3, 0.2)}
    )
    expected = visible_triplet(
        features.numpy(), visible.numpy(), labels.numpy(), margin, config.plane_weights,
        reduction=reduction, normalised=normalised,
    )  # fmt: skip
    actual, _ = visible_triplet_loss(features, visible, labels, config)
    assert actual.item() == pytest.approx(expected, abs=1e-12)


def test_an_anchor_counts_when_a_positive_and_a_negative_show_its_plane() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    visible = torch.tensor(
        [
            # front: everything there; back: no negative; side: no second positive; top: the anchor itself is invisible
            [True, True, True, False],
            [True, True, False, True],
            [True, False, False, True],
            [True, False, True, True],
            [False, False, False, False],
        ]
    )
    features = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    loss, anchors = visible_triplet_loss(features, visible, labels, VisibleTripletConfig())
    assert anchors.T.tolist() == [
        [True, True, True, False, False],
        [False] * 5,
        [False] * 5,
        [False, True, True, False, False],
    ]
    assert loss > 0


def test_features_of_invisible_planes_do_not_matter_and_get_no_gradient() -> None:
    features, visible, labels = _batch(12, seed=1)
    config = VisibleTripletConfig()
    expected, _ = visible_triplet_loss(features, visible, labels, config)
    disturbed = torch.where(visible[..., None], features, 1e3).requires_grad_()
    actual, _ = visible_triplet_loss(disturbed, visible, labels, config)
    actual.backward()
    assert actual.item() == expected.item() > 0
    assert disturbed.grad is not None
    assert (disturbed.grad[~visible] == 0).all()
    assert (disturbed.grad[visible] != 0).any()


def test_no_valid_anchor_anywhere_gives_zero_with_a_graph() -> None:
    features = torch.zeros(6, 4, 3, requires_grad=True)
    visible = torch.zeros(6, 4, dtype=torch.bool)
    loss, anchors = visible_triplet_loss(features, visible, torch.arange(6) // 2, VisibleTripletConfig())
    loss.backward()
    assert loss.item() == 0
    assert not anchors.any()
    assert features.grad is not None
    assert (features.grad == 0).all()


def test_a_visible_feature_of_zeros_gives_a_finite_gradient() -> None:
    features, _, labels = _batch(8, seed=2, shown=1.0)
    features[0] = 0
    features.requires_grad_()
    visible_triplet_loss(features, torch.ones(8, 4, dtype=torch.bool), labels, VisibleTripletConfig())[0].backward()
    assert features.grad is not None
    assert (features.grad[0] == 0).all()
    assert features.grad.abs().max() < 1e3
    torch.testing.assert_close(normalise(features.detach())[1:].norm(dim=-1), torch.ones(7, 4, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_passes_gradcheck_and_the_order_of_the_batch_does_not_matter(reduction: str) -> None:
    features, visible, labels = _batch(10, seed=3)
    config = VisibleTripletConfig.model_validate({"reduction": reduction})
    assert torch.autograd.gradcheck(
        lambda x: visible_triplet_loss(x, visible, labels, config)[0],
        (torch.where(visible[..., None], features, 1.0).requires_grad_(),),
    )
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    expected, _ = visible_triplet_loss(features, visible, labels, config)
    actual, _ = visible_triplet_loss(features[order], visible[order], labels[order], config)
    assert actual.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_plane_features_give_a_finite_float32_loss(dtype: torch.dtype) -> None:
    features, visible, labels = _batch(12, seed=4)
    features = features.to(dtype).requires_grad_()
    before = features.detach().clone()
    loss, _ = visible_triplet_loss(features, visible, labels, VisibleTripletConfig())
    loss.backward()
    expected = visible_triplet(
        before.double().numpy(), visible.numpy(), labels.numpy(), 0.3, VisibleTripletConfig().plane_weights
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert torch.equal(features, before)


def test_weights_that_make_no_loss_are_refused() -> None:
    for weights in ((0, 0, 0, 0), (1, 1, 1, -0.1)):
        with pytest.raises(ValueError, match="not all 0, got"):
            VisibleTripletConfig(plane_weights=weights)
