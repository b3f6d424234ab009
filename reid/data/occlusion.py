"""Occluded queries: one colour patch on each query image, the same on every machine (METHOD 2.3; PMANet, section IV-E).

The paper's test set (random colour patches on VeRi-776's queries) was never published, so this one is made from a seed.
A patch is a function of the seed, the image's key and the severity alone: not of batches, workers, or what else is in
the data set. Seed and key fix place, aspect and colour, the severity only the size, and a patch contains every smaller
one of its image: a curve over severities shows more of the same occlusion and not another draw.

It is painted into the stored image before that is resized, so that networks of any input size see the same scene, and
so that a set of occluded images that is written to disk (`reid.data.occluded_queries`) gives the same pixels.

Convention: boxes are (left, top, right, bottom) in pixels of the stored image, right and bottom exclusive.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from reid.contracts import Settings
from reid.data.draws import Purpose, key_fractions
from reid.data.index import Index

ALGORITHM_VERSION: Final = 1
"""Raise it with any change of the patches."""
ASPECT: Final = (0.3, 3.3)
"""Smallest and largest height / width, uniform in its logarithm, as in training (`TransformConfig.occlusion_aspect`).
Of the sides as shares of the image's: an image is stretched to the network's size, and so its patch would be."""
TABLE_ENDINGS: Final = (".csv", ".json")

Box = tuple[int, int, int, int]


class OcclusionConfig(Settings):
    """How queries are occluded."""

    severity: float = Field(gt=0.0, lt=1.0)
    """Share of the image's area that the patch covers; PMANet's range of interest is 0.05 to 0.3."""
    seed: int = Field(default=0, ge=0)
    """Places, aspects and colours follow from it."""

    @property
    def words(self) -> str:
        """As tables and notes say it.

        >>> OcclusionConfig(severity=0.05).words
        'queries 5 % occluded'
        """
        return f"queries {100 * self.severity:.6g} % occluded"

    def label(self, protocol: str) -> str:
        """The protocol as a result names it, so that no figure passes for one of clean queries.

        >>> OcclusionConfig(severity=0.3).label("veri776")
        'veri776, queries 30 % occluded'
        """
        return f"{protocol}, {self.words}"


class Patch(NamedTuple):
    """What seed and key decide; the severity decides the size."""

    across: float
    """0..1: the patch's left edge as a share of the room that its width leaves."""
    down: float
    """0..1: the same of its top edge."""
    aspect: float
    """Height / width, as shares of the image's sides."""
    colour: tuple[int, int, int]
    """Red, green, blue, each 0..255."""

    def box(self, severity: float, width: int, height: int) -> Box:
        """The patch on an image.

        Sides are rounded to whole pixels, at least one: the covered share is off by up to half a pixel a side. An
        aspect that does not fit the severity (above 0.3) gives way: the long side is the image's. Never outside the
        image, and never leaving what a smaller severity covers: a side that grows by a pixel moves its near edge by
        one or not at all.

        Args:
            severity: 0..1, exclusive.
            width: Of the stored image, pixels.
            height: Of the stored image, pixels.
        """
        aspect = min(max(self.aspect, severity), 1 / severity)
        across = min(width, max(1, round(width * math.sqrt(severity / aspect))))
        down = min(height, max(1, round(height * math.sqrt(severity * aspect))))
        left, top = int(self.across * (width - across + 1)), int(self.down * (height - down + 1))
        return left, top, left + across, top + down


def draw_patch(key: str, seed: int) -> Patch:
    """The patch of the image with this key."""
    across, down, aspect, *colour = key_fractions(seed, Purpose.OCCLUDED_QUERY, key, 6).tolist()
    low, high = ASPECT
    red, green, blue = (int(256 * value) for value in colour)
    return Patch(across, down, low * (high / low) ** aspect, (red, green, blue))


def occlude(image: NDArray[np.uint8], key: str, config: OcclusionConfig) -> None:
    """Paints its patch into an image.

    Args:
        image: (h, w, 3) uint8 RGB as stored, written to.
        key: Of the image.
        config: Severity and seed.
    """
    patch = draw_patch(key, config.seed)
    left, top, right, bottom = patch.box(config.severity, image.shape[1], image.shape[0])
    image[top:bottom, left:right] = patch.colour


@dataclass(frozen=True, slots=True)
class PatchTable:
    """The patches of a set of queries: what anybody needs to make the same images."""

    config: OcclusionConfig
    rows: tuple[tuple[str, int, int, int, int, int, int, str], ...]
    """Key, width, height, left, top, right, bottom, colour (#rrggbb), by ascending key."""

    @property
    def sha256(self) -> str:
        """Of the rows as CSV without a header: equal where and only where the same pixels get the same colours."""
        return hashlib.sha256("".join(f"{','.join(map(str, row))}\n" for row in self.rows).encode()).hexdigest()

    def covered(self) -> float:
        """The share of an image that is covered, mean over the images; the severity but for whole pixels."""
        shares = [(right - left) * (bottom - top) / (w * h) for _, w, h, left, top, right, bottom, _ in self.rows]
        return float(np.mean(shares))

    def summary(self) -> dict[str, Any]:
        """Plain data that names the occluded set."""
        return {
            **self.config.model_dump(mode="json"),
            "version": ALGORITHM_VERSION,
            "num_patches": len(self.rows),
            "mean_covered": round(self.covered(), 6),
            "patches_sha256": self.sha256,
        }


COLUMNS: Final = ("key", "width", "height", "left", "top", "right", "bottom", "colour")


def patch_table(index: Index, rows: NDArray[np.int64], config: OcclusionConfig) -> PatchTable:
    """The patches of some images.

    Args:
        index: Columns of the data set.
        rows: (N,) the queries.
        config: Severity and seed.
    """
    lines = []
    for row in rows.tolist():
        key, width, height = str(index.key[row]), int(index.width[row]), int(index.height[row])
        patch = draw_patch(key, config.seed)
        colour = "#" + bytes(patch.colour).hex()
        lines.append((key, width, height, *patch.box(config.severity, width, height), colour))
    return PatchTable(config, tuple(sorted(lines)))


def write_patches(tables: Sequence[tuple[str, PatchTable]], path: Path) -> None:
    """Writes patches as CSV or JSON, by the ending of `path`.

    Args:
        tables: Patches and the name of the queries, such as the protocol.
        path: File to write.

    Raises:
        ValueError: For another ending.
    """
    check_table_name(path)
    if path.suffix.lower() == ".json":
        data = [
            {
                "queries": name,
                **table.summary(),
                "patches": [dict(zip(COLUMNS, row, strict=True)) for row in table.rows],
            }
            for name, table in tables
        ]
        path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("queries", "seed", "severity", *COLUMNS))
    for name, table in tables:
        writer.writerows((name, table.config.seed, table.config.severity, *row) for row in table.rows)
    path.write_text(text.getvalue())


def check_table_name(path: Path) -> None:
    """ValueError for a file of patches that is neither CSV nor JSON."""
    if path.suffix.lower() not in TABLE_ENDINGS:
        raise ValueError(f"{path}: expected a name that ends in .csv or .json")
