"""Runs without Ray, in this process: trained to the end, or stopped after some steps as a driver would stop them."""

from __future__ import annotations

import torch

from reid.build.training import build_training
from reid.config import AnyExperiment
from reid.contracts import EpochResult
from reid.training.snapshot import CheckpointState
from reid.training.workers import Wish


def train(experiment: AnyExperiment, stop_after: int | None = None) -> list[EpochResult]:
    """Trains a run from where it stands; `stop_after` counts the times that the loop asks what it is to do."""
    training = build_training(experiment, torch.device("cpu"))
    taken = 0

    def wish() -> Wish:
        nonlocal taken
        taken += 1
        return Wish.STOP if taken == stop_after else Wish.NOTHING

    try:
        return [result for result in training.results(wish) if isinstance(result, EpochResult)]
    finally:
        training.stream.close()


def assert_same_bits(expected: CheckpointState, actual: CheckpointState) -> None:
    """Weights and the optimiser's tensors are equal to the last bit."""
    for saved, again in ((expected.model, actual.model), (expected.optimizer.tensors, actual.optimizer.tensors)):
        assert saved.keys() == again.keys()
        assert all(torch.equal(saved[key], again[key]) for key in saved)
