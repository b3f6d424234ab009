"""The 20 vehicle keypoints of the VeRi-776 annotation, their mirror pairs, and the plane table (METHOD 1.1).

Keypoints are numbered 1..20 in papers, files and here; arrays hold them at number - 1. Left and right are the
vehicle's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

NUM_KEYPOINTS: Final = 20

KEYPOINT_NAMES: Final[tuple[str, ...]] = (
    "left-front wheel",
    "left-back wheel",
    "right-front wheel",
    "right-back wheel",
    "right fog lamp",
    "left fog lamp",
    "right headlight",
    "left headlight",
    "front logo",
    "front plate",
    "left mirror",
    "right mirror",
    "right-front roof corner",
    "left-front roof corner",
    "left-back roof corner",
    "right-back roof corner",
    "left rear lamp",
    "right rear lamp",
    "rear logo",
    "rear plate",
)

MIRROR_PAIRS: Final[tuple[tuple[int, int], ...]] = (
    (1, 3), (2, 4), (5, 6), (7, 8), (11, 12), (13, 14), (15, 16), (17, 18),
)  # fmt: skip
"""Keypoint numbers that trade places when the image is flipped."""


def mirror_order() -> tuple[int, ...]:
    """Array index of the keypoint that each one becomes in a flipped image.

    >>> mirror_order()[:4]
    (2, 3, 0, 1)
    """
    order = list(range(NUM_KEYPOINTS))
    for a, b in MIRROR_PAIRS:
        order[a - 1], order[b - 1] = b - 1, a - 1
    return tuple(order)


ORIENTATION_NAMES: Final[tuple[str, ...]] = (
    "front", "rear", "left", "left-front", "left-rear", "right", "right-front", "right-rear",
)  # fmt: skip
MIRROR_ORIENTATION: Final[tuple[int, ...]] = (0, 1, 5, 6, 7, 2, 3, 4)
"""Orientation code of the flipped image."""

PLANE_NAMES: Final[tuple[str, ...]] = ("front", "back", "side", "top")
NUM_PLANES: Final = len(PLANE_NAMES)

VERI_PLANE_RATES: Final[dict[str, float]] = {"front": 0.426, "back": 0.478, "side": 0.658, "top": 0.839}
"""Share of VeRi-776 gallery images that show each plane by its four keypoints (before substitution and limits)."""
VERI_SUBSTITUTION_GAINS: Final[dict[str, float]] = {"front": 0.042, "back": 0.008}
"""What the substitute of a missing bottom corner adds to those rates."""


def veri_rate_with_substitutes(plane: str) -> float:
    """Share of VeRi-776 gallery images that show a plane, substitutes included.

    >>> round(veri_rate_with_substitutes("front"), 3), veri_rate_with_substitutes("top")
    (0.468, 0.839)
    """
    return VERI_PLANE_RATES[plane] + VERI_SUBSTITUTION_GAINS.get(plane, 0.0)


PlaneCorner = Literal["TL", "TR", "BR", "BL"]
"""Corner of the rectified target grid: top-left, top-right, bottom-right, bottom-left."""


@dataclass(frozen=True, slots=True)
class PlaneRule:
    """How one flat face of a vehicle is recognised from keypoints (METHOD 1.1)."""

    plane: str
    """One of `PLANE_NAMES`. Two rules of the same plane are alternatives: where both hold, the larger area wins."""
    corners: tuple[int, int, int, int]
    """Keypoint numbers 1..20, top-left, top-right, bottom-right, bottom-left for a viewer who faces the plane.

    In an image (y down) they run clockwise when the face looks at the camera: the sum of x1*y2 - x2*y1 over the edges
    is positive.
    """
    targets: tuple[PlaneCorner, PlaneCorner, PlaneCorner, PlaneCorner]
    """Corner of the target that each of `corners` goes to."""
    substitute: int | None = None
    """Keypoint number that stands in, with the target bottom-middle, when exactly one bottom corner is missing."""


PLANE_RULES: Final[tuple[PlaneRule, ...]] = (
    PlaneRule("front", (13, 14, 6, 5), ("TL", "TR", "BR", "BL"), substitute=10),
    PlaneRule("back", (15, 16, 18, 17), ("TL", "TR", "BR", "BL"), substitute=19),
    PlaneRule("side", (14, 15, 2, 1), ("TL", "TR", "BR", "BL")),
    PlaneRule("side", (16, 13, 3, 4), ("TR", "TL", "BL", "BR")),
    PlaneRule("top", (16, 15, 14, 13), ("TL", "TR", "BR", "BL")),
)
"""The default plane table. Both side rules put the vehicle's front at the left: the right side's target is mirrored."""
