"""PANet's whole loss on one process: the loops, the weighted sum, float32, and what masks it takes."""

from __future__ import annotations

import pytest
import torch

from reid.contracts import PANetOutput
from reid.losses.panet import PANetLossConfig, mask_overlaps, panet_loss, trust
from tests.reference import losses as reference

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def _output(dtype: torch.dtype = torch.float32) -> PANetOutput:
    generator = torch.Generator().manual_seed(0)
    features, logits, masks = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in ((8, 6), (8, 4), (8, 1, 5, 7))
    )
    return PANetOutput(features=features, logits=logits, masks=masks)


def _masks() -> torch.Tensor:
    return (torch.rand(8, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.4).to(torch.uint8)


@pytest.mark.parametrize("margin", [0.7, "soft"])
def test_parts_statistics_and_total_equal_the_loops(margin: float | str) -> None:
    config = PANetLossConfig.model_validate(
        {
            "triplet_margin": margin,
            "label_smoothing": 0.2,
            "identity_weight": 2.0,
            "triplet_weight": 0.5,
            "segmentation_weight": 3.0,
        }
    )
    output, masks = _output(torch.float64), _masks()
    terms = panet_loss(output, LABELS, masks, config)
    predicted, coarse = output.masks.detach().numpy(), masks.numpy()
    features, logits = output.features.detach().numpy(), output.logits.detach().numpy()
    expected = {
        "identity": reference.smoothed_cross_entropy(logits, LABELS.numpy(), 0.2),
        "triplet": reference.batch_hard_triplet(features, LABELS.numpy(), margin)[0],
        "segmentation": reference.mask_squared_error(predicted, coarse),
    }
    assert terms.parts.keys() == expected.keys()
    for name, value in expected.items():
        assert value > 0.1
        assert terms.parts[name].item() == pytest.approx(value, rel=1e-10), name
        assert not terms.parts[name].requires_grad
    total = 2 * expected["identity"] + 0.5 * expected["triplet"] + 3 * expected["segmentation"]
    assert terms.total.item() == pytest.approx(total, rel=1e-10)
    assert expected["segmentation"] != pytest.approx(reference.mask_squared_error(predicted, 1 - coarse), rel=1e-2)

    iou = reference.mask_iou(predicted, coarse)
    assert 0.1 < iou < 0.9
    assert terms.statistics.keys() == {"mask_iou", "valid_anchors/global"}
    assert terms.statistics["mask_iou"].item() == pytest.approx(iou)
    assert terms.statistics["valid_anchors/global"] == 1


def test_the_segmentation_gradient_is_right_and_stays_in_the_masks() -> None:
    masks = _masks()
    config = PANetLossConfig(identity_weight=0, triplet_weight=0)

    def loss(values: torch.Tensor) -> torch.Tensor:
        output = _output(torch.float64)
        replaced = PANetOutput(features=output.features, logits=output.logits, masks=values)
        return panet_loss(replaced, LABELS, masks, config).total

    assert torch.autograd.gradcheck(loss, (_output(torch.float64).masks,))
    output = _output()
    panet_loss(output, LABELS, masks, config).total.backward()
    for tensor in (output.features, output.logits):
        assert tensor.grad is not None
        assert not tensor.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_float32_under_autocast(dtype: torch.dtype) -> None:
    output = _output(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        terms = panet_loss(output, LABELS, _masks(), PANetLossConfig())
    terms.total.backward()
    exact = PANetOutput(features=output.features.double(), logits=output.logits.double(), masks=output.masks.double())
    expected = panet_loss(exact, LABELS, _masks(), PANetLossConfig())
    assert terms.total.dtype == torch.float32
    assert terms.total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    for tensor in (output.features, output.logits, output.masks):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_a_perfect_mask_costs_nothing_and_overlaps_fully() -> None:
    output, masks = _output(), _masks()
    certain = PANetOutput(features=output.features, logits=output.logits, masks=(masks.float() - 0.5) * 200)
    terms = panet_loss(certain, LABELS, masks, PANetLossConfig())
    assert terms.parts["segmentation"] == 0
    assert terms.statistics["mask_iou"] == 1


def test_overlap_is_that_of_each_image_and_two_empty_masks_agree() -> None:
    predicted = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool().view(4, 1, 2, 2)
    expected = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]).bool().view(4, 1, 2, 2)
    assert mask_overlaps(predicted, expected).tolist() == [1 / 4, 1, 0, 3 / 4]


def test_trusted_are_the_masks_that_overlap_best_of_equal_ones_the_first() -> None:
    overlaps = torch.tensor([0.3, 0.9, 0.5, 0.5, 0.1])
    assert trust(overlaps, 0.4).tolist() == [0, 2.5, 2.5, 0, 0]
    assert trust(overlaps, 0.01).tolist() == [0, 5, 0, 0, 0]
    assert trust(overlaps, 1.0).tolist() == [1, 1, 1, 1, 1]


def test_segmentation_learns_from_trusted_masks_alone_once_the_epoch_has_come() -> None:
    output, masks = _output(torch.float64), _masks()
    config = PANetLossConfig(identity_weight=0, triplet_weight=0, trusted_masks=0.4, trusted_from_epoch=2)
    predicted, coarse = output.masks.detach().numpy(), masks.numpy()
    overlaps = [reference.mask_iou(predicted[image : image + 1], coarse[image : image + 1]) for image in range(8)]
    best = sorted(range(8), key=lambda image: -overlaps[image])[:3]

    early = panet_loss(output, LABELS, masks, config, epoch=1)
    assert early.parts["segmentation"].item() == pytest.approx(reference.mask_squared_error(predicted, coarse))
    late = panet_loss(output, LABELS, masks, config, epoch=2)
    expected = reference.mask_squared_error(predicted[best], coarse[best])
    assert late.parts["segmentation"].item() == pytest.approx(expected, rel=1e-6)
    assert late.total.item() == pytest.approx(expected, rel=1e-6)
    assert expected < early.parts["segmentation"].item()
    assert late.statistics["mask_iou"].item() == pytest.approx(sum(overlaps) / 8)  # of all, trusted or not
    late.total.backward()
    assert output.masks.grad is not None
    learned_from = output.masks.grad.flatten(1).any(1)
    assert learned_from.nonzero().flatten().tolist() == sorted(best)


def test_masks_of_another_shape_are_refused_instead_of_broadcast() -> None:
    with pytest.raises(ValueError, match=r"expected the shape of the output's, \(8, 1, 5, 7\), got \(8, 5, 7\)"):
        panet_loss(_output(), LABELS, _masks()[:, 0], PANetLossConfig())


def test_defaults_are_the_papers() -> None:
    config = PANetLossConfig()
    assert (config.identity_weight, config.triplet_weight, config.segmentation_weight) == (1, 1, 1)
    assert (config.label_smoothing, config.triplet_margin) == (0.1, 0.7)
    assert config.trusted_masks == 1
    with pytest.raises(ValueError, match="segmentation_weight"):
        PANetLossConfig.model_validate({"segmentation_weight": -1})
