"""A training run of seconds for tests: a small network, and batches that are a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reid.contracts import Batch, LossTerms
from reid.process_group import world_size
from reid.training.optim import OptimizerConfig, build_optimizer, parameter_groups
from reid.training.step import StepConfig, TrainingStep, prepare_model
from reid.training.workers import rank

NUM_CLASSES = 6


class SmallNet(nn.Module):
    """Two convolutions, batch norm unless told otherwise, dropout so that the random state matters."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(16, NUM_CLASSES, bias=False)

    def forward(self, images: Tensor, keypoints: Tensor | None = None) -> Tensor:
        features = self.second(torch.relu(self.norm(self.first(images.float() / 255))))
        return self.classifier(self.dropout(torch.relu(features).mean((2, 3))))


def identity_loss(logits: Tensor, labels: Tensor, epoch: int = 0) -> LossTerms:
    loss = cross_entropy(logits.float(), labels)
    return LossTerms(total=loss, parts={"identity": loss.detach()}, statistics={"labels": labels.float().mean()})


class PlannedStream:
    """Global batches of `batch_size` images; worker r of R takes the r-th part. `consumed` remembers the rows."""

    def __init__(self, *, steps: int = 5, batch_size: int = 8, pixels: int = 12, seed: int = 0) -> None:
        self.steps, self.batch_size, self.pixels, self.seed = steps, batch_size, pixels, seed
        self.consumed: list[list[int]] = []

    def steps_in_epoch(self, epoch: int) -> int:
        return self.steps

    def batch(self, epoch: int, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch * 1009 + step)
        count, pixels = self.batch_size, self.pixels
        labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
        noise = torch.randint(0, 128, (count, 3, pixels, pixels), generator=generator)
        return Batch(
            images=(noise + 20 * labels.view(-1, 1, 1, 1)).to(torch.uint8),
            labels=labels,
            samples=torch.randint(100_000, (count,), generator=generator),
            keypoints=torch.zeros(count, 20, 3),
        )

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for step in range(start_step, self.steps):
            batch = self.batch(epoch, step)
            self.consumed.append(batch.samples.tolist())
            yield part_of(batch)


def part_of(batch: Batch) -> Batch:
    share = len(batch.labels) // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    return Batch(
        images=batch.images[own],
        labels=batch.labels[own],
        samples=batch.samples[own],
        keypoints=batch.keypoints[own],
    )


def build_step(
    config: StepConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    *,
    seed: int = 0,
    norm: bool = True,
    dropout: float = 0.1,
    objective: Any = identity_loss,
) -> TrainingStep:
    config = config or StepConfig(precision="float32")
    optimizer = optimizer or OptimizerConfig(learning_rate=0.01)
    torch.manual_seed(seed)
    model = prepare_model(SmallNet(norm=norm, dropout=dropout), config, torch.device("cpu"))
    return TrainingStep(model, objective, build_optimizer(parameter_groups(model, optimizer), optimizer), config)


def everything(step: TrainingStep) -> dict[str, Tensor]:
    """All numbers that a run carries from one step to the next, by name."""
    found = {f"model/{name}": value for name, value in step.bare_model.state_dict().items()}
    names = {parameter: name for name, parameter in step.bare_model.named_parameters()}
    for parameter, entries in step.optimizer.state.items():
        for key, value in entries.items():
            found[f"optimizer/{key}/{names[parameter]}"] = value
    if step.ema is not None:
        found.update({f"average/{name}": value for name, value in step.ema.weights().items()})
    if step.scaler is not None:
        found["scaler"] = torch.tensor([float(value) for value in step.scaler.state_dict().values()])
    return {name: value.detach().clone() for name, value in found.items()}


def differing(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> list[str]:
    """Names whose bits differ, or which only one side has."""
    missing = expected.keys() ^ actual.keys()
    return sorted(missing) + [
        name for name in expected.keys() & actual.keys() if not torch.equal(expected[name], actual[name])
    ]
