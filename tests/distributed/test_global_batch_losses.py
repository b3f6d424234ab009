"""One process with batch 12 = two with 6 = three with 4: PPT's loss and the parameters' gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reid.contracts import PPTOutput
from reid.losses.global_batch import gather, gather_with_gradient
from reid.losses.identity import identity_loss
from reid.losses.ppt import PPTLossConfig, ppt_loss
from reid.losses.triplet import triplet_loss
from tests.distributed.gradients import averaged_gradients, values_of
from tests.processes import run

BATCH = 12
CONFIG = PPTLossConfig(triplet_margin=2.0)  # wide enough that most anchors pull


class _SmallModel(nn.Module):
    """A convolution, a classifier and one projection per plane: every part of the loss reaches parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 4, bias=False)
        self.planes = nn.Linear(8, 4 * 8)

    def forward(self, images: torch.Tensor, visible: torch.Tensor) -> PPTOutput:
        features = torch.tanh(self.convolution(images)).mean((2, 3))
        plane_features = self.planes(features).view(-1, 4, 8) * visible[..., None]
        return PPTOutput(
            features=features,
            logits=self.classifier(features),
            plane_features=plane_features,
            plane_visible=visible,
        )


def _loss_and_gradients(
    rank: int, world_size: int, *, local: bool = False
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = _SmallModel().double()
    images = torch.randn(BATCH, 3, 6, 6, dtype=torch.float64)
    visible = torch.rand(BATCH, 4) < 0.7
    labels = torch.tensor([0, 1, 2, 3] * 3)
    own = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    output = model(images[own], visible[own])
    if local:
        total = identity_loss(output.logits, labels[own], 0.1) + triplet_loss(output.features, labels[own], 2.0)[0]
        values = {"total": total.item()}
    else:
        terms = ppt_loss(output, labels[own], CONFIG)
        total, values = terms.total, values_of(terms)
    total.backward()
    return values, averaged_gradients(model, world_size, some_unused=local)  # the local variant has no planes


def _local_loss_and_gradients(rank: int, world_size: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    return _loss_and_gradients(rank, world_size, local=True)


@pytest.mark.parametrize("world_size", [2, 3])
def test_loss_and_gradients_do_not_depend_on_the_number_of_workers(world_size: int) -> None:
    expected_values, expected_gradients = _loss_and_gradients(0, 1)
    assert min(expected_values.values()) > 0
    results = run(_loss_and_gradients, world_size)
    for name, expected in expected_values.items():
        actual = sum(values[name] for values, _ in results) / world_size
        assert actual == pytest.approx(expected, abs=1e-12), name
    for _, gradients in results:
        for name, gradient in expected_gradients.items():
            assert gradient.abs().max() > 1e-3, name
            torch.testing.assert_close(gradients[name], gradient, atol=1e-13, rtol=1e-10)


def test_triplets_mined_on_each_worker_alone_give_another_gradient() -> None:
    _, expected = _loss_and_gradients(0, 1, local=True)
    (_, actual), *_ = run(_local_loss_and_gradients, 2)
    assert (actual["convolution.weight"] - expected["convolution.weight"]).abs().max() > 1e-4


def _gather_everything(rank: int, world_size: int) -> list[torch.Tensor]:
    rows = torch.full((2, 3), float(rank), requires_grad=True)
    gathered = gather_with_gradient(rows)
    (gathered * torch.arange(float(gathered.numel())).view_as(gathered)).sum().backward()
    assert rows.grad is not None
    visible = gather(torch.tensor([rank == 0, rank == 1]))
    return [gathered.detach(), rows.grad, visible, gather(torch.tensor([10 * rank]))]


def test_gathered_rows_are_in_rank_order_and_the_gradient_is_the_own_slice_times_the_workers() -> None:
    results = run(_gather_everything, 2)
    for rank, (rows, gradient, visible, labels) in enumerate(results):
        assert rows.tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
        assert gradient.flatten().tolist() == [2.0 * i for i in range(6 * rank, 6 * rank + 6)]
        assert visible.tolist() == [True, False, False, True]
        assert labels.tolist() == [0, 10]
