from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from reid.training.checkpoint_files import tensors_from_bytes, tensors_to_bytes
from reid.training.randomness import RandomState, capture_random_state, restore_random_state, seed_everything


def _draws() -> list[float]:
    """From every generator, the cached second normal deviates of numpy and Python included."""
    values = [random.random(), random.gauss(0, 1), float(np.random.standard_normal()), float(np.random.rand())]  # noqa: NPY002
    return values + torch.rand(3).tolist() + torch.randn(3).tolist()


def test_the_state_survives_tensors_and_json() -> None:
    seed_everything(5)
    _draws()  # leaves odd positions and cached deviates behind
    state = capture_random_state()
    expected = [_draws() for _ in range(3)]

    tensors = tensors_from_bytes(tensors_to_bytes(state.tensors), "random")
    values = json.loads(json.dumps(dict(state.values), allow_nan=False))
    seed_everything(1)
    assert _draws() != expected[0]
    restore_random_state(RandomState(tensors=tensors, values=values))
    assert [_draws() for _ in range(3)] == expected


def test_a_seed_gives_the_same_numbers_again() -> None:
    seed_everything(2**40 + 3)
    expected = _draws()
    seed_everything(2**40 + 3)
    assert _draws() == expected


def test_a_state_of_another_generator_is_refused() -> None:
    state = capture_random_state()
    other = RandomState(tensors=state.tensors, values={**state.values, "python_version": 2})
    with pytest.raises(ValueError, match="version 2 of Python's generator, expected 3"):
        restore_random_state(other)
