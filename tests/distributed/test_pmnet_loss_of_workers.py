"""One process with batch 12 = two with 6 = three with 4: PMNet's loss and the parameters' gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reid.contracts import PartTaskOutput, PMNetOutput
from reid.losses.pmnet import PMNetLossConfig, pmnet_loss
from tests.distributed.gradients import averaged_gradients, values_of
from tests.processes import run

BATCH = 12
PARTS, CHANNELS, CLASSES = 2, 6, 4
LOG_VARIANCES = (0.5, -1.0, 4.5, -4.5, 0.0)
"""One held at each bound, where a worker's own losses would decide otherwise than the batch's."""


class _SmallModel(nn.Module):
    """A convolution and linear layers: every part of the loss reaches parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.classifier = nn.Linear(8, CLASSES, bias=False)
        self.branches = nn.ModuleList(nn.Linear(8, PARTS * CHANNELS) for _ in range(2))
        self.classifiers = nn.ModuleList(nn.Linear(CHANNELS, CLASSES, bias=False) for _ in range(2))
        self.joined = nn.ModuleList(nn.Linear(PARTS * CHANNELS, CLASSES, bias=False) for _ in range(2))
        self.planes = nn.Linear(8, 4 * CHANNELS)
        self.log_variances = nn.Parameter(torch.tensor(LOG_VARIANCES))

    def forward(self, images: torch.Tensor, visible: torch.Tensor) -> PMNetOutput:
        features = torch.tanh(self.convolution(images)).mean((2, 3))
        tasks = []
        for branch, classifier, joined in zip(self.branches, self.classifiers, self.joined, strict=True):
            parts = branch(features).view(-1, PARTS, CHANNELS)
            tasks.append(
                PartTaskOutput(features=parts, logits=classifier(parts), joined_logits=joined(parts.flatten(1)))
            )
        return PMNetOutput(
            features=features,
            logits=self.classifier(features),
            main=tasks[0],
            partial=tasks[1],
            log_variances=self.log_variances,
            plane_features=self.planes(features).view(-1, 4, CHANNELS),
            plane_visible=visible,
        )


def _config(margin: float) -> PMNetLossConfig:
    return PMNetLossConfig(triplet_margin=2.0, part_transfer_margin=margin)  # wide enough that most anchors pull


def _loss_and_gradients(rank: int, world_size: int, margin: float) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = _SmallModel().double()
    images = torch.randn(BATCH, 3, 6, 6, dtype=torch.float64)
    visible = torch.rand(BATCH, 4) < 0.8
    labels = torch.tensor([0, 1, 2, 3] * 3)
    own = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    terms = pmnet_loss(model(images[own], visible[own]), labels[own], _config(margin), epoch=0)
    terms.total.backward()
    return values_of(terms), averaged_gradients(model, world_size)


@pytest.mark.parametrize("world_size", [2, 3])
def test_loss_and_gradients_do_not_depend_on_the_number_of_workers(world_size: int) -> None:
    expected_values, expected_gradients = _loss_and_gradients(0, 1, 0.05)
    assert min(expected_values.values()) > 0
    for values, gradients in run(_loss_and_gradients, world_size, 0.05):
        for name, expected in expected_values.items():  # the same on every worker, not only on average
            assert values[name] == pytest.approx(expected, abs=1e-12), name
        for name, gradient in expected_gradients.items():
            assert gradient.abs().max() > 1e-4, name
            torch.testing.assert_close(gradients[name], gradient, atol=1e-13, rtol=1e-10)


def _distance(rank: int, world_size: int) -> float:
    torch.manual_seed(0)
    model = _SmallModel().double()
    images = torch.randn(BATCH, 3, 6, 6, dtype=torch.float64)
    own = images[rank * BATCH // world_size : (rank + 1) * BATCH // world_size]
    visible = torch.ones(len(own), 4, dtype=torch.bool)
    terms = pmnet_loss(model(own, visible), torch.tensor([0, 1, 2, 3] * 3)[: len(own)], _config(0.0), epoch=0)
    return terms.statistics["part_distance"].item()


def test_the_hinge_opens_for_the_batch_where_some_workers_alone_would_keep_it_shut() -> None:
    apart = [_distance(rank, 3) for rank in range(3)]  # without a process group: each batch by itself
    whole = _distance(0, 1)
    assert sum(apart) / 3 == pytest.approx(whole)
    margin = (min(apart) + whole) / 2
    assert min(apart) < margin < whole
    per_worker = sum(max(0.0, distance - margin) for distance in apart) / 3
    expected_values, expected_gradients = _loss_and_gradients(0, 1, margin)
    assert abs(per_worker - expected_values["part_transfer"]) > 1e-6
    for values, gradients in run(_loss_and_gradients, 3, margin):
        assert values["part_transfer"] == pytest.approx(whole - margin, abs=1e-12)
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-13, rtol=1e-10)
