"""Masks and part boxes of a shard set against the true masks of another set of the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.build.added_parts import centres_inside, intersection_over_union
from reid.contracts import DataError
from reid.data.additions import MASK_MAKERS
from reid.data.decode import UnreadableImageError, decode_mask
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
    true_rows, rows = _rows_by_key(truth, splits), _rows_by_key(shards, splits)
    if not rows:
        there = ", ".join(name for name, count in sorted(shards.manifest.counts.items()) if count)
        raise DataError(
            f"{shards.manifest.name} has no image in {', '.join(splits or ('any split',))}, only in {there or 'none'}"
        )
    if others := sorted(rows.keys() ^ true_rows.keys()):
        raise DataError(
            f"{len(others)} images, {others[0]} first, are in one of the two sets only: compare sets of the same images"
        )
    index = shards.index
    overlaps, inside, flagged = [], [], []
    for done, (key, row) in enumerate(rows.items(), 1):
        true_data, data = truth.read_mask(true_rows[key]), shards.read_mask(row)
        if true_data is None or data is None:
            raise DataError(f"image {key} has no mask in {'the true' if true_data is None else 'the compared'} set")
        try:
            true_mask, mask = decode_mask(true_data), decode_mask(data)
        except UnreadableImageError as error:
            raise DataError(f"a mask of image {key} cannot be read: {error}") from error
        if true_mask.shape != mask.shape:
            raise DataError(f"image {key}: masks of {true_mask.shape} and {mask.shape} pixels")
        overlaps.append(intersection_over_union(mask, true_mask))
        if index.boxes is not None:
            inside.append(centres_inside(index.boxes[row], true_mask))
        flagged.append(
            index.flags is not None and any(flag.partition(":")[0] in MASK_MAKERS for flag in index.flags[row])
        )
        if progress is not None:
            progress(done, len(rows))
    return MaskComparison(
        keys=np.array(list(rows)),
        overlaps=np.array(overlaps),
        centres_inside=np.array(inside) if inside else None,
        flagged=np.array(flagged, dtype=np.bool_),
    )


def _rows_by_key(shards: ShardSet, splits: tuple[str, ...] | None) -> dict[str, int]:
    """split/key -> row of the index."""
    index = shards.index
    return {
        f"{split}/{key}": row
        for row, (split, key) in enumerate(zip(index.split.tolist(), index.key.tolist(), strict=True))
        if splits is None or split in splits
    }
