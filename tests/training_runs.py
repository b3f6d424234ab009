"""Runs without Ray, in this process: trained to the end, or stopped after some steps as a driver would stop them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

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
    assert_same_tensors(expected.model, actual.model)
    assert_same_tensors(expected.optimizer.tensors, actual.optimizer.tensors)


def assert_same_tensors(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
    """The same names, and under each the same bits."""
    assert expected.keys() == actual.keys()
    different = [name for name in expected if not torch.equal(expected[name], actual[name])]
    assert not different
