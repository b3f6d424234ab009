"""One process with batch 12 = two with 6 = three with 4: PANet's loss and the parameters' gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reid.contracts import PANetOutput
from reid.losses.panet import PANetLossConfig, panet_loss
from tests.distributed.gradients import averaged_gradients, values_of
from tests.processes import run

BATCH = 12
WIDE = PANetLossConfig(triplet_margin=2.0, segmentation_weight=3.0)  # wide enough that most anchors pull
TRUSTING = WIDE.model_copy(update={"trusted_masks": 0.4})


class _SmallModel(nn.Module):
    """A convolution, a classifier and a mask: every part of the loss reaches parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 4, bias=False)
        self.mask = nn.Conv2d(8, 1, 1)

    def forward(self, images: torch.Tensor) -> PANetOutput:
        maps = torch.tanh(self.convolution(images))
        features = maps.mean((2, 3))
        return PANetOutput(features=features, logits=self.classifier(features), masks=self.mask(maps))


def _loss_and_gradients(
    rank: int, world_size: int, config: PANetLossConfig
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = _SmallModel().double()
    images = torch.randn(BATCH, 3, 6, 6, dtype=torch.float64)
    masks = (torch.rand(BATCH, 1, 6, 6) < torch.linspace(0.1, 0.9, BATCH)[:, None, None, None]).to(torch.uint8)
    labels = torch.tensor([0, 1, 2, 3] * 3)
    own = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    terms = panet_loss(model(images[own]), labels[own], masks[own], config)
    terms.total.backward()
    return values_of(terms), averaged_gradients(model, world_size)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("config", [WIDE, TRUSTING])
def test_loss_and_gradients_do_not_depend_on_the_number_of_workers(config: PANetLossConfig, world_size: int) -> None:
    expected_values, expected_gradients = _loss_and_gradients(0, 1, config)
    assert min(expected_values.values()) > 0
    results = run(_loss_and_gradients, world_size, config)
    assert len({values["mask_iou"] for values, _ in results}) == world_size  # the workers' own means
    for name, expected in expected_values.items():
        actual = sum(values[name] for values, _ in results) / world_size
        # The overlap is a float32 statistic, everything else is float64.
        assert actual == pytest.approx(expected, abs=1e-7 if name == "mask_iou" else 1e-12), name
    for _, gradients in results:
        for name, gradient in expected_gradients.items():
            assert gradient.abs().max() > 1e-3, name
            torch.testing.assert_close(gradients[name], gradient, atol=1e-13, rtol=1e-10)
