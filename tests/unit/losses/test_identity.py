"""Identity loss: loops, golden file, half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reid.losses.identity import identity_loss
from tests.reference.losses import smoothed_cross_entropy

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "labelsmooth_10_8_0.1.npz"


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_equals_the_loops(smoothing: float) -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    expected = smoothed_cross_entropy(logits.numpy(), labels.numpy(), smoothing)
    assert expected > 0.1
    assert identity_loss(logits, labels, smoothing).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: identity_loss(x, labels, smoothing), (logits.requires_grad_(),))


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no golden file {GOLDEN}")
def test_agrees_with_the_golden_file() -> None:
    golden = np.load(GOLDEN, allow_pickle=False)
    logits = torch.tensor(golden["logits"]).double().requires_grad_()
    actual = identity_loss(logits, torch.tensor(golden["labels"]), float(golden["eps"]))
    actual.backward()
    assert actual.item() == pytest.approx(float(golden["torch_loss64"]), abs=1e-12)
    assert abs(actual.item() - float(golden["fr_loss64"])) > 1e-3  # spread over the wrong classes only
    np.testing.assert_allclose(logits.grad, golden["torch_grad64"], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_a_finite_float32_loss(dtype: torch.dtype) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = identity_loss(logits, torch.tensor([1]), 0.1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(smoothed_cross_entropy(logits.detach().double().numpy(), np.array([1]), 0.1))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
