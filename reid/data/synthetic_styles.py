"""What a vehicle model is: its body, its colours and its trim, drawn at random.

All identities of one model share them; what tells those apart is in `synthetic_marks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from reid.data.synthetic_bodies import BodyKind, BodyShape, make_shape
from reid.data.synthetic_surfaces import Colour

KIND_SHARES: Final[dict[BodyKind, float]] = {
    "sedan": 0.38, "suv": 0.2, "hatchback": 0.14, "van": 0.12, "truck": 0.08, "bus": 0.08,
}  # fmt: skip
"""How often each kind is drawn; VeRi-776's mix is similar, with more sedans."""

TYPE_NUMBERS: Final[dict[BodyKind, int]] = {"sedan": 1, "suv": 2, "van": 3, "hatchback": 4, "bus": 7, "truck": 8}
"""Numbers of VeRi-776's list_type.txt."""
TYPE_NAMES: Final = ("sedan", "suv", "van", "hatchback", "mpv", "pickup", "bus", "truck", "estate")
COLOUR_NAMES: Final = ("yellow", "orange", "green", "gray", "red", "blue", "white", "golden", "brown", "black")
"""Names of VeRi-776's list_color.txt, numbered from 1."""

_PAINTS: Final[dict[str, tuple[Colour, float]]] = {
    "white": ((228, 232, 232), 0.3),
    "black": ((38, 36, 36), 0.2),
    "gray": ((150, 148, 145), 0.2),
    "red": ((42, 36, 150), 0.08),
    "blue": ((140, 82, 40), 0.08),
    "brown": ((52, 70, 98), 0.04),
    "golden": ((130, 168, 190), 0.03),
    "yellow": ((40, 180, 222), 0.03),
    "green": ((80, 120, 50), 0.02),
    "orange": ((40, 110, 220), 0.02),
}


@dataclass(frozen=True, slots=True)
class Style:
    """A model in one colour: all identities of a group of near-duplicates have the same one."""

    shape: BodyShape
    paint: Colour
    colour_number: int
    """1-based position in `COLOUR_NAMES`."""
    second_paint: Colour
    """Roof of two-tone cars, stripe of buses, box of trucks."""
    two_tone: bool
    plate: Colour
    lamp_length: float
    """How far the headlights reach along the side, in metres."""
    lamp_drop: float
    """Height of the lamps, in metres."""
    grille: int
    """Pattern 0..3."""
    spokes: int
    rim: Colour
    lower_trim: bool
    """Dark plastic along sills and bumpers."""
    sunroof: bool
    pillars: int
    """Number of side windows."""


def make_style(generator: np.random.Generator, kind: BodyKind | None = None) -> Style:
    """A random model and colour."""
    if kind is None:
        kinds = list(KIND_SHARES)
        kind = kinds[int(generator.choice(len(kinds), p=np.array(list(KIND_SHARES.values()))))]
    shape = make_shape(kind, generator)
    names = list(_PAINTS)
    shares = np.array([share for _, share in _PAINTS.values()])
    name = names[int(generator.choice(len(names), p=shares / shares.sum()))]
    jitter = generator.normal(0.0, 7.0, 3) + generator.normal(0.0, 9.0)
    paint = _clip(np.array(_PAINTS[name][0]) + jitter)
    others = ((225, 228, 228), (150, 95, 45), (60, 60, 165), (90, 140, 70), (70, 165, 215), (150, 150, 150))
    second = others[int(generator.integers(len(others)))]
    two_tone = bool(generator.random() < (0.15 if kind not in ("bus", "truck") else 0.8))
    if kind not in ("bus", "truck"):
        second = (30, 29, 28)
    windows = {"sedan": 2, "hatchback": 2, "suv": 3, "van": 3, "truck": 1, "bus": int(generator.integers(5, 8))}[kind]
    plates = ((150, 85, 30), (150, 85, 30), (60, 180, 215), (215, 215, 215))
    return Style(
        shape=shape,
        paint=paint,
        colour_number=COLOUR_NAMES.index(name) + 1,
        second_paint=second,
        two_tone=two_tone,
        plate=plates[int(generator.integers(4))] if kind not in ("bus", "truck") else plates[2],
        lamp_length=float(generator.uniform(0.12, 0.42)),
        lamp_drop=float(generator.uniform(0.1, 0.2)),
        grille=int(generator.integers(4)),
        spokes=int(generator.integers(5, 11)),
        rim=_clip(generator.uniform(120, 205) + np.zeros(3)),
        lower_trim=bool(generator.random() < (0.7 if kind == "suv" else 0.3)),
        sunroof=bool(generator.random() < 0.25) and kind in ("sedan", "suv", "hatchback"),
        pillars=windows,
    )


def _clip(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Colour:
    blue, green, red = (int(value) for value in np.clip(np.round(values), 12, 245))
    return blue, green, red
