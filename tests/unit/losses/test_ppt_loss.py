"""PPT's whole loss on one process: the sum of its parts, in float32, with the branch on and off."""

from __future__ import annotations

import pytest
import torch

from reid.contracts import PPTOutput
from reid.keypoints import PLANE_NAMES
from reid.losses.global_batch import gather, gather_with_gradient
from reid.losses.identity import identity_loss
from reid.losses.ppt import PPTLossConfig, ppt_loss
from reid.losses.triplet import triplet_loss
from reid.losses.visible_triplet import VisibleTripletConfig, visible_triplet_loss

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def _output(*, planes: bool = True, dtype: torch.dtype = torch.float32) -> PPTOutput:
    generator = torch.Generator().manual_seed(0)
    features, logits, plane_features = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in ((8, 6), (8, 4), (8, 4, 6))
    )
    visible = torch.rand(8, 4, generator=generator) < 0.8
    return PPTOutput(
        features=features,
        logits=logits,
        plane_features=plane_features if planes else None,
        plane_visible=visible if planes else None,
    )


def test_total_is_the_weighted_sum_of_the_parts() -> None:
    config = PPTLossConfig(identity_weight=2.0, triplet_weight=0.5, planes_weight=3.0, triplet_margin="soft")
    output = _output()
    terms = ppt_loss(output, LABELS, config)
    assert output.plane_features is not None
    assert output.plane_visible is not None
    planes, anchors = visible_triplet_loss(output.plane_features, output.plane_visible, LABELS, VisibleTripletConfig())
    expected = {
        "identity": identity_loss(output.logits, LABELS, 0.1),
        "triplet": triplet_loss(output.features, LABELS, "soft")[0],
        "planes": planes,
    }
    assert terms.parts.keys() == expected.keys()
    for name, value in expected.items():
        assert terms.parts[name].item() == pytest.approx(value.item())
        assert not terms.parts[name].requires_grad
        assert value.item() > 0
    total = 2 * expected["identity"] + 0.5 * expected["triplet"] + 3 * expected["planes"]
    assert terms.total.item() == pytest.approx(total.item())
    assert terms.statistics.keys() == {"valid_anchors/global", *(f"valid_anchors/{name}" for name in PLANE_NAMES)}
    shares = [terms.statistics[f"valid_anchors/{name}"].item() for name in PLANE_NAMES]
    assert shares == pytest.approx(anchors.float().mean(0).tolist())
    assert 0 < min(shares) < 1


def test_branch_off_leaves_identity_and_triplet() -> None:
    terms = ppt_loss(_output(planes=False), LABELS, PPTLossConfig())
    assert set(terms.parts) == {"identity", "triplet"}
    assert set(terms.statistics) == {"valid_anchors/global"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_float32_under_autocast(dtype: torch.dtype) -> None:
    output = _output(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        terms = ppt_loss(output, LABELS, PPTLossConfig())
    terms.total.backward()
    expected = ppt_loss(output, LABELS, PPTLossConfig())
    assert terms.total.dtype == torch.float32
    assert terms.total.item() == expected.total.item()
    for tensor in (output.features, output.logits, output.plane_features):
        assert tensor is not None
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_without_a_process_group_gathering_changes_nothing() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(rows) is rows
    assert torch.equal(gather(rows), rows)


def test_defaults_are_the_papers() -> None:
    config = PPTLossConfig()
    assert (config.label_smoothing, config.triplet_margin, config.planes.margin) == (0.1, 0.3, 0.3)
    assert config.planes.plane_weights == (0.5, 0.5, 0.3, 0.2)
    with pytest.raises(ValueError, match="margin"):
        PPTLossConfig.model_validate({"triplet_margin": -0.1})
