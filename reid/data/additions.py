"""What an enrichment is: a pure function of samples to what is added to them, and what it says about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from reid.contracts import Settings, Split

MASK: Final = "mask.png"
BOXES: Final = "boxes.json"
KEYPOINTS: Final = "keypoints"
IMAGE: Final = "image"
"""Kinds of additions, as the manifest counts them; the first two are endings of members."""
MASK_MAKERS: Final = ("coarse-masks", "parts")
"""Names of the enrichments whose flags are about masks."""
BOX_MAKERS: Final = ("parts", "stripes")
"""Names of the enrichments whose flags are about part boxes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image of the source and what is known about it."""

    key: str
    split: Split
    image: memoryview
    """The image file."""
    width: int
    """Pixels of the stored image."""
    height: int
    mask: memoryview | None
    """The mask file, where there is one already."""
    keypoints: NDArray[np.float32] | None
    """(20, 3) as in `Index.keypoints`, where there are some already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Additions:
    """What a sample is given; None: it keeps what it has."""

    image: bytes | None = None
    """PNG of the image's size."""
    mask: bytes | None = None
    """PNG of the image's size, 0 background, 255 vehicle."""
    keypoints: NDArray[np.float32] | None = None
    """(20, 3) x, y in pixels of the stored image and visibility 0/1."""
    keypoint_scores: NDArray[np.float32] | None = None
    """(20,), together with keypoints."""
    boxes: NDArray[np.float32] | None = None
    """(K, 4) as in `Index.boxes`."""
    problem: str = ""
    """Why the sample was given a fallback or nothing, one word of a fixed set; counted, and flagged in the index."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Figures whose means the manifest tells."""


class Provenance(Settings):
    """Where additions come from."""

    name: str
    """Such as "coarse-masks"."""
    version: str
    """Of the algorithm and the libraries that shape its results, or the hash of the model."""
    settings: dict[str, Any]


class Enrichment(Protocol):
    """A pure function of each sample, picklable for the processes that carry it out."""

    @property
    def provenance(self) -> Provenance:
        """All that shapes the additions: equal provenance, equal additions."""

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Additions]:
        """The additions of each sample, in order. It may take several samples at a time, as a network wants them."""
