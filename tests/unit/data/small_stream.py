"""A small training stream over images in memory, and its batches as bytes to compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reid.contracts import Batch
from reid.data.plan import PlanConfig
from reid.data.stream import LoaderConfig, TrainStream
from reid.data.transforms import TransformConfig
from tests.unit.data.memory_source import MemorySource

VEHICLES = [3, 9, 5, 1, 8, 4, 4, 2, 7, 13, 5, 6, 3, 9, 5, 1, 8, 4, 4, 2]
PLAN = PlanConfig(identities_per_batch=12, images_per_identity=3)
TRANSFORM = TransformConfig(
    height=16,
    width=16,
    padding=2,
    flip_probability=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    occlusion_probability=0.5,
)


def stream_of(
    source: MemorySource,
    processes: int = 0,
    worker: int = 0,
    num_workers: int = 1,
    num_epochs: int = 0,
    **loader: object,
) -> TrainStream:
    config = LoaderConfig.model_validate({"processes": processes, "masks": True, **loader})
    return TrainStream(
        source, PLAN, TRANSFORM, config, seed=3, worker=worker, num_workers=num_workers, num_epochs=num_epochs
    )


def everything(batches: Sequence[Batch]) -> bytes:
    """All that a global batch holds, workers one after the other."""
    masks = [batch.masks for batch in batches if batch.masks is not None]
    assert len(masks) == len(batches)
    columns = [
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.samples for batch in batches]),
        torch.cat([batch.keypoints for batch in batches]),
        torch.cat(masks),
    ]
    return b"".join(column.contiguous().numpy().tobytes() for column in columns)
