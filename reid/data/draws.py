"""Random numbers that are a function of (seed, epoch, purpose, position) and of nothing else.

Only numpy's bit generators are used (Philox keyed by SeedSequence: NEP 19 promises the same stream for ever), never
`Generator.shuffle`, `choice` or `random`, whose streams may change between versions. Orders come from stable sorts of
raw integers. So the same plan and the same augmentation result on every machine, for every number of workers.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What a stream of numbers is for; a new purpose gets a new number, so that the other streams stay as they are."""

    IDENTITY_ORDER = 1
    PIECE_ORDER = 2
    EXTRA_VISITS = 3
    SHARD_ORDER = 4
    VISIT_OFFSET = 5
    VISIT_JITTER = 6
    IMAGE_ORDER = 7
    CROP = 20
    COLOUR_JITTER = 21
    ERASING = 22
    OCCLUSION_BOX = 23
    OCCLUSION_COLOUR = 24
    WARP = 25
    DEGRADATION = 26
    NOISE = 27
    BACKGROUND = 28
    PASTE = 29
    REPLACEMENT = 30
    HELD_OUT = 40
    OCCLUDED_QUERY = 50


def epoch_integers(seed: int, epoch: int, purpose: Purpose, count: int) -> NDArray[np.uint64]:
    """`count` raw 64-bit numbers of one epoch.

    Args:
        seed: Seed of the run, >= 0.
        epoch: 0-based.
        purpose: Which stream.
        count: How many.

    Returns:
        (count,) uint64, uniform over all values.
    """
    return np.random.Philox(np.random.SeedSequence((seed, epoch, int(purpose)))).random_raw(count)


def step_fractions(seed: int, epoch: int, purpose: Purpose, step: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers of one step, uniform in [0, 1): the step is Philox's counter, so any step costs the same.

    Args:
        seed: Seed of the run, >= 0.
        epoch: 0-based.
        purpose: Which stream.
        step: 0-based step within the epoch.
        shape: Shape of the answer; its first axis should be the slots of the *global* batch, so that a worker that owns
            some of them takes its part of the same numbers.

    Returns:
        float64 array of `shape`.
    """
    key = stream_key(seed, epoch, purpose)
    # the step sits in the second word of the 256-bit counter: each step has 2**64 blocks of its own
    generator = np.random.Philox(key=key, counter=np.array([0, step, 0, 0], dtype=np.uint64))
    return as_fractions(generator.random_raw(int(np.prod(shape)))).reshape(shape)


def key_fractions(seed: int, purpose: Purpose, key: str, count: int) -> NDArray[np.float64]:
    """Numbers of one image by its key, uniform in [0, 1), whatever other images there are.

    Args:
        seed: >= 0.
        purpose: Which stream.
        key: Of the image.
        count: How many.

    Returns:
        (count,) float64; fewer are the beginning of more.
    """
    words = np.frombuffer(hashlib.sha256(key.encode()).digest()[:24], dtype="<u8")
    # the first word counts the blocks of a stream, the other three say which stream
    counter = np.concatenate((np.zeros(1, dtype=np.uint64), words.astype(np.uint64)))
    return as_fractions(np.random.Philox(key=stream_key(seed, 0, purpose), counter=counter).random_raw(count))


def slot_bytes(key: NDArray[np.uint64], step: int, slot: int, count: int) -> NDArray[np.uint8]:
    """`count` random bytes of one slot of one step, without drawing those of other slots.

    Args:
        key: (2,) from `stream_key`.
        step: 0-based step within the epoch.
        slot: Of the global batch.
        count: How many.
    """
    generator = np.random.Philox(key=key, counter=np.array([0, step, slot, 0], dtype=np.uint64))
    return generator.random_raw(-(-count // 8)).view(np.uint8)[:count]


def stream_key(seed: int, epoch: int, purpose: Purpose) -> NDArray[np.uint64]:
    """(2,) Philox's key of a stream of one epoch."""
    key: NDArray[np.uint64] = np.random.SeedSequence((seed, epoch, int(purpose))).generate_state(2, np.uint64)  # type: ignore[assignment]
    return key


def as_fractions(integers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The upper 53 bits as fractions in [0, 1), exact in float64.

    >>> as_fractions(np.array([0, 2**63], dtype=np.uint64)).tolist()
    [0.0, 0.5]
    """
    return (integers >> np.uint64(11)).astype(np.float64) * 2.0**-53
