"""Features of a set of images by any model that embeds a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.contracts import Batch, Embeddings
from reid.evaluation.distances import normalised

Embed = Callable[..., Tensor]
"""(B, 3, H, W) uint8 RGB -> (B, D) features of any length, such as `PPT.embed`. Batches with part boxes also give masks
(B, 1, H, W) and boxes (B, K, 4), as `PMNet.embed` takes them."""


def extract_features(
    embed: Embed,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    precision: Literal["float32", "bf16"] = "float32",
    flip: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Normalised features of all images, in the order of the batches.

    Args:
        embed: The model's embedding, in evaluation mode.
        batches: Images; each row of the index once.
        device: Where the model is.
        precision: bf16 runs the network under autocast; features are float32 always.
        flip: Average the normalised features of each image and its mirror image.

    Returns:
        (N, D) float32 of length one, and (N,) int64 rows of the index.

    Raises:
        ValueError: If there are no batches, or a feature is zero or not finite (naming the index row).
    """
    features: list[NDArray[np.float32]] = []
    rows: list[NDArray[np.int64]] = []
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    with torch.inference_mode(), autocast:
        for batch in batches:
            inputs = _inputs(batch.to(device, non_blocking=True))
            values = _unit(embed(*inputs))
            if flip:
                values = _unit(values + _unit(embed(*_mirrored(inputs))))
            samples = batch.samples.numpy().astype(np.int64)
            features.append(_checked(values.cpu().numpy(), samples))
            rows.append(samples)
    if not features:
        raise ValueError("expected images to embed, got no batch; check split, subset and slice")
    return np.concatenate(features), np.concatenate(rows)


def make_embeddings(
    features: NDArray[np.float32],
    samples: NDArray[np.int64],
    identity_codes: NDArray[np.int64],
    camera_codes: NDArray[np.int64],
) -> Embeddings:
    """Features together with identity and camera, looked up in the index's codes by row."""
    return Embeddings(
        features=features, vehicle_ids=identity_codes[samples], camera_ids=camera_codes[samples], samples=samples
    )


def join_embeddings(parts: list[Embeddings]) -> Embeddings:
    """The slices of several workers as one, rows ascending, each row once (a repeated slice does no harm)."""
    samples = np.concatenate([part.samples for part in parts])
    unique, first = np.unique(samples, return_index=True)
    return Embeddings(
        features=np.concatenate([part.features for part in parts])[first],
        vehicle_ids=np.concatenate([part.vehicle_ids for part in parts])[first],
        camera_ids=np.concatenate([part.camera_ids for part in parts])[first],
        samples=unique,
    )


def select_embeddings(embeddings: Embeddings, rows: NDArray[np.int64]) -> Embeddings:
    """The embeddings of the given rows of the index, in their order.

    Raises:
        ValueError: If some rows have no feature (an image could not be read, or a slice is missing).
    """
    order = np.argsort(embeddings.samples, kind="stable")
    positions = np.searchsorted(embeddings.samples, rows, sorter=order)
    found = order[np.minimum(positions, len(order) - 1)]
    missing = rows[embeddings.samples[found] != rows]
    if len(missing):
        raise ValueError(
            f"expected a feature for each of {len(rows)} images, {len(missing)} have none "
            f"(first: index row {missing[0]})"
        )
    return Embeddings(
        features=embeddings.features[found],
        vehicle_ids=embeddings.vehicle_ids[found],
        camera_ids=embeddings.camera_ids[found],
        samples=embeddings.samples[found],
    )


def _inputs(batch: Batch) -> tuple[Tensor, ...]:
    if batch.boxes is None:
        return (batch.images,)
    assert batch.masks is not None, "delivered together with boxes"
    return batch.images, batch.masks, batch.boxes


def _mirrored(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images, masks and boxes left-right flipped; each part keeps its place."""
    images, *parts = inputs
    if not parts:
        return (images.flip(3),)
    masks, boxes = parts
    left, top, right, bottom = boxes.unbind(-1)
    return images.flip(3), masks.flip(3), torch.stack((1 - right, top, 1 - left, bottom), dim=-1)


def _unit(values: Tensor) -> Tensor:
    return torch.nn.functional.normalize(values.float(), eps=1e-30)


def _checked(values: NDArray[np.float32], samples: NDArray[np.int64]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(values, axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))
    if len(bad):
        what = "zero-norm" if lengths[bad[0]] == 0 else "non-finite"
        raise ValueError(
            f"the feature of index row {samples[bad[0]]} is {what} ({len(bad)} of this batch's {len(samples)} images); "
            "the model has diverged or its weights were not loaded"
        )
    return normalised(values)
