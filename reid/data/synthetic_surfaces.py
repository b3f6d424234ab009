"""The paint of a synthetic vehicle: orthographic pictures of its five sides, drawn once per identity, and a wheel.

Convention: a canvas is painted in metres of the vehicle's frame; `LEFT`/`RIGHT` take (x, z), `FRONT`/`REAR` (y, z),
`TOP` (x, y), `WHEEL` (across, up) from its hub. Every canvas is unmirrored for a viewer who faces it: lettering reads.
Pictures are BGR plus gloss (0 matt .. 255 mirror).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.data.synthetic_bodies import BodyShape
from reid.data.synthetic_mesh import Chart

Colour = tuple[int, int, int]
"""Blue, green, red 0..255."""

_SHIFT: Final = 4
_GAP: Final = 6
_DIRECTIONS: Final = {  # chart -> (axis across, sign), (axis down, sign)
    Chart.LEFT: ((0, -1), (2, -1)),
    Chart.RIGHT: ((0, 1), (2, -1)),
    Chart.FRONT: ((1, 1), (2, -1)),
    Chart.REAR: ((1, -1), (2, -1)),
    Chart.TOP: ((0, -1), (1, 1)),
    Chart.WHEEL: ((0, 1), (2, -1)),
}


@dataclass(frozen=True, slots=True)
class Canvas:
    """One side of a vehicle as a picture that is painted in metres."""

    chart: Chart
    picture: NDArray[np.uint8]
    """(H, W, 4)."""
    scale: float
    """Pixels per metre."""
    corner: tuple[float, float]
    """The two vehicle coordinates of pixel (0, 0)."""

    def pixels(self, points: Sequence[tuple[float, float]] | NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) pixel positions of points in metres."""
        (_, sign_across), (_, sign_down) = _DIRECTIONS[self.chart]
        offset = np.asarray(points, dtype=np.float64).reshape(-1, 2) - self.corner
        return offset * [sign_across * self.scale, sign_down * self.scale]

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour, gloss: int = 40) -> None:
        """Fill a polygon."""
        fixed = np.round(self.pixels(points) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.picture, [fixed], (*colour, gloss), cv2.LINE_AA, _SHIFT)

    def rectangle(self, low: tuple[float, float], high: tuple[float, float], colour: Colour, gloss: int = 40) -> None:
        """Fill an upright rectangle."""
        (a, b), (c, d) = low, high
        self.polygon([(a, b), (c, b), (c, d), (a, d)], colour, gloss)

    def line(
        self, points: Sequence[tuple[float, float]], colour: Colour, thickness: float = 0.012, gloss: int = 20
    ) -> None:
        """Draw a polyline `thickness` metres wide, at least one pixel."""
        fixed = np.round(self.pixels(points) * (1 << _SHIFT)).astype(np.int32)
        width = max(1, round(thickness * self.scale))
        cv2.polylines(self.picture, [fixed], False, (*colour, gloss), width, cv2.LINE_AA, _SHIFT)

    def ellipse(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        colour: Colour,
        gloss: int = 40,
        ring: float = 0.0,
    ) -> None:
        """Fill an ellipse, or draw only a ring of the given thickness (metres)."""
        x, y = np.round(self.pixels([centre])[0] * (1 << _SHIFT)).astype(int).tolist()
        axes = tuple(max(1, round(radius * self.scale * (1 << _SHIFT))) for radius in radii)
        thickness = max(1, round(ring * self.scale)) if ring else -1
        cv2.ellipse(self.picture, (x, y), axes, 0, 0, 360, (*colour, gloss), thickness, cv2.LINE_AA, _SHIFT)

    def paste(
        self, sticker: NDArray[np.uint8], centre: tuple[float, float], width: float, degrees: float = 0.0
    ) -> None:
        """Lay a BGRA picture over the canvas, `width` metres wide, turned by `degrees`; its gloss becomes dull."""
        height_pixels, width_pixels = sticker.shape[:2]
        zoom = width * self.scale / width_pixels
        turn = cv2.getRotationMatrix2D((width_pixels / 2 - 0.5, height_pixels / 2 - 0.5), degrees, zoom)
        turn[:, 2] += self.pixels([centre])[0] - [width_pixels / 2 - 0.5, height_pixels / 2 - 0.5]
        cosine, sine = abs(turn[0, 0]), abs(turn[0, 1])
        reach = int(np.ceil(0.5 * (cosine * width_pixels + sine * height_pixels))) + 2
        rise = int(np.ceil(0.5 * (sine * width_pixels + cosine * height_pixels))) + 2
        x, y = np.round(self.pixels([centre])[0]).astype(int).tolist()
        x0, y0 = max(0, x - reach), max(0, y - rise)
        x1, y1 = min(self.picture.shape[1], x + reach), min(self.picture.shape[0], y + rise)
        if x1 <= x0 or y1 <= y0:
            return
        turn[:, 2] -= [x0, y0]
        laid = cv2.warpAffine(sticker, turn, (x1 - x0, y1 - y0), flags=cv2.INTER_AREA)
        opacity = laid[..., 3:].astype(np.float32) / 255.0
        target = self.picture[y0:y1, x0:x1]
        laid[..., 3] = 15
        target[:] = np.rint(target + (laid - target.astype(np.float32)) * opacity).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Atlas:
    """All canvases in one picture, in several resolutions, and how a point of the vehicle is looked up in it."""

    levels: tuple[NDArray[np.uint8], ...]
    """(H, W, 4) pictures, each half of the one before."""
    scale: float
    """Pixels per metre of the finest level."""
    lookup: NDArray[np.float64]
    """(7, 2, 4): for each `Chart` the affine map from (x, y, z, 1) to (column, row) of the finest level."""


def new_canvases(shape: BodyShape, paint: Colour) -> dict[Chart, Canvas]:
    """Blank canvases for a vehicle of this shape."""
    side = float(np.clip(400.0 / shape.length, 56.0, 90.0))
    end = float(np.clip(260.0 / shape.width, 100.0, 140.0))
    tall = max(shape.height, shape.box_height) + 0.3
    half, wide, radius = shape.half + 0.06, shape.width / 2 + 0.12, shape.wheel_radius * 1.06
    sizes = {
        Chart.LEFT: (side, (half, tall), 2 * half, tall),
        Chart.RIGHT: (side, (-half, tall), 2 * half, tall),
        Chart.FRONT: (end, (-wide, tall), 2 * wide, tall),
        Chart.REAR: (end, (wide, tall), 2 * wide, tall),
        Chart.TOP: (side, (half, -wide), 2 * half, 2 * wide),
        Chart.WHEEL: (end, (-radius, radius), 2 * radius, 2 * radius),
    }
    canvases = {}
    for chart, (scale, corner, across, down) in sizes.items():
        picture = filled_picture(int(np.ceil(down * scale)), int(np.ceil(across * scale)), (*paint, 40))
        canvases[chart] = Canvas(chart, picture, scale, corner)
    return canvases


def join_canvases(canvases: dict[Chart, Canvas], shape: BodyShape) -> Atlas:
    """Pack the canvases one below the other (the three small ones side by side) and halve them twice."""
    places: dict[Chart, tuple[int, int]] = {}
    row = _GAP
    for chart in (Chart.LEFT, Chart.RIGHT, Chart.TOP):
        places[chart] = (_GAP, row)
        row += canvases[chart].picture.shape[0] + _GAP
    column = _GAP
    for chart in (Chart.FRONT, Chart.REAR, Chart.WHEEL):
        places[chart] = (column, row)
        column += canvases[chart].picture.shape[1] + _GAP
    row += max(canvases[chart].picture.shape[0] for chart in (Chart.FRONT, Chart.REAR, Chart.WHEEL)) + _GAP
    width = max(column, _GAP * 2 + canvases[Chart.LEFT].picture.shape[1]) + 24
    width, row = -(-width // 4) * 4, -(-row // 4) * 4
    finest = filled_picture(row, width, canvases[Chart.LEFT].picture[0, 0].tolist())
    finest[:24, -24:] = (26, 25, 24, 0)
    lookup = np.zeros((7, 2, 4))
    for chart, (left, upper) in places.items():
        canvas = canvases[chart]
        height, across = canvas.picture.shape[:2]
        finest[upper : upper + height, left : left + across] = canvas.picture
        for line, ((axis, sign), start, base) in enumerate(
            zip(_DIRECTIONS[chart], (left, upper), canvas.corner, strict=True)
        ):
            lookup[chart, line, axis] = sign * canvas.scale
            lookup[chart, line, 3] = start - sign * canvas.scale * base
    lookup[Chart.WHEEL, 1, 3] -= lookup[Chart.WHEEL, 1, 2] * shape.wheel_radius
    lookup[Chart.DARK, :, 3] = (width - 12, 12)
    levels = [finest]
    for _ in range(2):
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return Atlas(tuple(levels), canvases[Chart.LEFT].scale, lookup)


def filled_picture(height: int, width: int, colour: Sequence[int]) -> NDArray[np.uint8]:
    """(H, W, 4) of one colour; whole pixels at once, which is ten times faster than channel by channel."""
    pixel = np.array(colour, np.uint8).view(np.uint32)
    return np.full((height, width, 1), pixel, np.uint32).view(np.uint8)


def shade(colour: Colour, factor: float) -> Colour:
    """A lighter or darker colour.

    >>> shade((100, 50, 200), 1.5)
    (150, 75, 255)
    """
    blue, green, red = (min(255, max(0, round(channel * factor))) for channel in colour)
    return blue, green, red
