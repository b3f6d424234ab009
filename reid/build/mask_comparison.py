"""Masks and part boxes of a shard set against the true masks of another set of the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.build.added_parts import centres_inside, intersection_over_union
from reid.contracts import DataError
from reid.data.decode import decode_mask
from reid.data.shard_set import ShardSet


@dataclass(frozen=True, kw_only=True)
class MaskComparison:
    """Figures over the N images of some splits."""

    keys: NDArray[np.str_]
    """(N,)"""
    overlaps: NDArray[np.float64]
    """(N,) intersection over union of each mask with the true one, 0..1."""
    centres_inside: NDArray[np.float64] | None
    """(N,) share of an image's boxes whose centre lies in the true mask; None: the set has no boxes."""
    flagged: NDArray[np.bool_]
    """(N,) images that were given a fallback."""

    def figures(self) -> dict[str, float]:
        """Means and shares, 0..1."""
        figures = {
            "IoU": float(self.overlaps.mean()),
            "median": float(np.median(self.overlaps)),
            "lowest 5 %": float(np.quantile(self.overlaps, 0.05)),
            "flagged": float(self.flagged.mean()),
        }
        if self.centres_inside is not None:
            figures["centres inside"] = float(self.centres_inside.mean())
            figures["images with all inside"] = float((self.centres_inside == 1).mean())
        return figures


def compare_masks(
    truth: ShardSet,
    shards: ShardSet,
    splits: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MaskComparison:
    """Compares the masks of two sets image by image.

    Args:
        truth: The set with the true masks.
        shards: Another set of the same images.
        splits: Which images; None: all.
        progress: Called with (images done, images).

    Raises:
        DataError: An image is missing in one of the sets, lacks a mask, or its masks differ in size.
    """
    true_rows = {key: row for row, key in enumerate(_keys(truth).tolist())}
    keys = _keys(shards)
    index = shards.index
    chosen = np.arange(len(index)) if splits is None else np.flatnonzero(np.isin(index.split, splits))
    if not len(chosen):
        raise DataError(f"{shards.manifest.name} has no image in {', '.join(splits or ())}")
    overlaps, inside, flagged = [], [], []
    for done, row in enumerate(chosen.tolist(), 1):
        key = str(keys[row])
        if key not in true_rows:
            raise DataError(f"image {key} is in one of the two sets only: compare sets of the same images")
        true_data, data = truth.read_mask(true_rows[key]), shards.read_mask(row)
        if true_data is None or data is None:
            raise DataError(f"image {key} has no mask in {'the true' if true_data is None else 'the compared'} set")
        true_mask, mask = decode_mask(true_data), decode_mask(data)
        if true_mask.shape != mask.shape:
            raise DataError(f"image {key}: masks of {true_mask.shape} and {mask.shape} pixels")
        overlaps.append(intersection_over_union(mask, true_mask))
        if index.boxes is not None:
            inside.append(centres_inside(index.boxes[row], true_mask))
        flagged.append(index.flags is not None and len(index.flags[row]) > 0)
        if progress is not None:
            progress(done, len(chosen))
    return MaskComparison(
        keys=keys[chosen],
        overlaps=np.array(overlaps),
        centres_inside=np.array(inside) if inside else None,
        flagged=np.array(flagged, dtype=np.bool_),
    )


def _keys(shards: ShardSet) -> NDArray[np.str_]:
    """split/key of each image."""
    return np.array([f"{split}/{key}" for split, key in zip(shards.index.split, shards.index.key, strict=True)])
