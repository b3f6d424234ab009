"""Random numbers of a run: one seed, and a state that can be written down without pickle."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomState:
    """The states of Python's, numpy's and torch's global generators.

    Nothing in it depends on the rank: it is captured on one worker and restored on all of them. What has to differ
    between images (augmentation) draws from seed, epoch and position instead of a global generator.
    """

    tensors: Mapping[str, Tensor]
    """`torch_cpu` uint8, `torch_cuda` uint8 (where there is CUDA), `numpy` int64 (624,), `python` int64 (625,)."""
    values: Mapping[str, float | int | None]
    """The scalars beside them."""


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (all CUDA devices too) the same way on every worker."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries that use the global generator are the reason)
    torch.manual_seed(seed)


def capture_random_state() -> RandomState:
    """The present states; of CUDA the current device's, if CUDA is in use."""
    _, key, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # noqa: NPY002
    version, words, gauss_next = random.getstate()
    tensors = {
        "torch_cpu": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(key).astype(np.int64)),
        "python": torch.tensor(words, dtype=torch.int64),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors["torch_cuda"] = torch.cuda.get_rng_state()
    values: dict[str, float | int | None] = {
        "numpy_position": int(position),
        "numpy_has_gauss": int(has_gauss),
        "numpy_cached_gaussian": float(cached_gaussian),
        "python_version": int(version),
        "python_gauss_next": gauss_next,
    }
    return RandomState(tensors=tensors, values=values)


def restore_random_state(state: RandomState) -> None:
    """Put the generators back. A state from a CPU run leaves CUDA's generator as seeded.

    Raises:
        ValueError: When the state was written by a Python with another generator.
    """
    values = state.values
    python_version = random.getstate()[0]
    if values["python_version"] != python_version:
        raise ValueError(
            f"random state has version {values['python_version']} of Python's generator, expected {python_version}"
        )
    torch.set_rng_state(state.tensors["torch_cpu"].cpu().contiguous())
    np.random.set_state(  # noqa: NPY002
        (
            "MT19937",
            state.tensors["numpy"].cpu().numpy().astype(np.uint32),
            int(values["numpy_position"] or 0),
            int(values["numpy_has_gauss"] or 0),
            float(values["numpy_cached_gaussian"] or 0.0),
        )
    )
    words = tuple(int(word) for word in state.tensors["python"].tolist())
    random.setstate((python_version, words, values["python_gauss_next"]))
    if "torch_cuda" in state.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.tensors["torch_cuda"].cpu().contiguous())
