"""What tells two vehicles of one model and colour apart: stickers, scratches, things behind the glass, roof fittings.

Marks are spread over the planes so that each view shows some of them, as no image shows front and back together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.data.synthetic_bodies import BodyShape
from reid.data.synthetic_keypoints import fog_lamp_height, head_lamp_height, rear_plate_height
from reid.data.synthetic_mesh import Chart
from reid.data.synthetic_styles import Style
from reid.data.synthetic_surfaces import Canvas, Colour, filled_picture

Canvases = dict[Chart, Canvas]

_COLOURS: Final[tuple[Colour, ...]] = (
    (40, 40, 215), (45, 160, 45), (200, 110, 30), (30, 200, 235), (235, 235, 235), (25, 25, 25), (180, 60, 170),
    (30, 130, 240), (190, 190, 60), (120, 120, 120),
)  # fmt: skip
_LETTERS: Final = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"


@dataclass(frozen=True, slots=True)
class Fitting:
    """A box on the roof, in metres of the vehicle's frame."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    colour: Colour


def draw_fittings(style: Style, generator: np.random.Generator, share: float) -> tuple[Fitting, ...]:
    """What one vehicle carries on its roof: nothing, rails, a box, a sign or a lamp bar.

    Args:
        style: the model.
        generator: of this identity.
        share: probability of any fitting.
    """
    s = style.shape
    colour = _COLOURS[int(generator.integers(len(_COLOURS)))]
    kind, offset, present = (
        int(generator.integers(4)),
        float(generator.uniform(-0.12, 0.12)),
        generator.random() < share,
    )
    if not present or s.kind == "bus":
        return ()
    base, roof = s.height - 0.04, s.screen_top - s.roof_end
    half = float(s.cabin_half_width(s.screen_top, s.height)) - 0.12
    middle = (s.screen_top + s.roof_end) / 2 + offset * roof
    if kind == 0:
        rails = [
            Fitting((middle - 0.36 * roof, y - 0.03, base), (middle + 0.36 * roof, y + 0.03, base + 0.11), (60, 60, 60))
            for y in (-half, half)
        ]
        bars = [
            Fitting((x - 0.04, -half, base + 0.08), (x + 0.04, half, base + 0.14), (110, 110, 110))
            for x in (middle - 0.22 * roof, middle + 0.2 * roof)
        ]
        return (*rails, *bars)
    if kind == 1:
        return (
            Fitting((middle - 0.3 * roof, -0.5 * half, base), (middle + 0.25 * roof, 0.55 * half, base + 0.3), colour),
        )
    if kind == 2:
        return (Fitting((middle - 0.12, -0.24, base), (middle + 0.12, 0.24, base + 0.22), colour),)
    return (
        Fitting(
            (middle + 0.1 * roof, -0.75 * half, base), (middle + 0.1 * roof + 0.2, 0.75 * half, base + 0.16), colour
        ),
    )


def paint_fittings(canvases: Canvases, fittings: tuple[Fitting, ...], style: Style) -> None:
    """Give the fittings their colours; the parts of the pictures above the roof belong to them alone."""
    for fitting in fittings:
        (x0, y0, _), (x1, y1, z1) = fitting.low, fitting.high
        floor = style.shape.height + 0.01
        for chart in (Chart.LEFT, Chart.RIGHT):
            canvases[chart].rectangle((x0 - 0.02, floor), (x1 + 0.02, z1 + 0.05), fitting.colour, 20)
        for chart in (Chart.FRONT, Chart.REAR):
            canvases[chart].rectangle((y0 - 0.02, floor), (y1 + 0.02, z1 + 0.05), fitting.colour, 20)
        canvases[Chart.TOP].rectangle((x0, y0), (x1, y1), fitting.colour, 20)


def paint_marks(canvases: Canvases, style: Style, generator: np.random.Generator, number: int, scale: float) -> None:
    """Paint `number` marks, the first three on the front, the rear and both sides, the others anywhere.

    Args:
        canvases: of the model, painted in place.
        style: the model.
        generator: of this identity.
        number: of marks; a mark on the sides is one on each side, of different make.
        scale: size of the marks; 1 gives stickers of 10 to 35 cm.
    """
    planes = [str(plane) for plane in generator.permutation(["front", "rear", "side"])]
    planes += [str(generator.choice(["front", "rear", "side", "top"])) for _ in range(max(0, number - 3))]
    _letter_plates(canvases, style, generator)
    for plane in planes[:number]:
        if plane == "side":
            for chart in (Chart.LEFT, Chart.RIGHT):
                painters = (_side_decal, _side_decal, _scratch, _side_window_sticker, _stripe)
                painter = _pick(generator, painters if not style.shape.box_height else (_side_decal,))
                painter(canvases[chart], style.shape, generator, scale)
        elif plane == "front":
            front_painters = (_windscreen_sticker, _windscreen_sticker, _dashboard, _bumper_sticker, _bonnet_mark)
            _pick(generator, front_painters)(canvases[Chart.FRONT], style.shape, generator, scale)
        elif plane == "rear":
            rear_painters = (_rear_sticker, _rear_sticker, _rear_window, _bumper_sticker)
            _pick(generator, rear_painters)(canvases[Chart.REAR], style.shape, generator, scale)
        else:
            _roof_mark(canvases[Chart.TOP], style.shape, generator, scale)


Painter = Callable[[Canvas, BodyShape, np.random.Generator, float], None]


def _pick(generator: np.random.Generator, painters: tuple[Painter, ...]) -> Painter:
    return painters[int(generator.integers(len(painters)))]


def _colour(generator: np.random.Generator) -> Colour:
    return _COLOURS[int(generator.integers(len(_COLOURS)))]


def draw_sticker(generator: np.random.Generator) -> NDArray[np.uint8]:
    """A random sticker, (64, 64 or 128, 4) BGRA."""
    kind, first, second = int(generator.integers(6)), _colour(generator), _colour(generator)
    wide = 128 if kind in (1, 4) else 64
    picture = np.zeros((64, wide, 4), np.uint8)
    picture[..., :3] = first
    opaque = (*first, 255)
    if kind == 0:
        cv2.circle(picture, (32, 32), 29, opaque, -1, cv2.LINE_AA)
        cv2.circle(picture, (32, 32), int(generator.integers(9, 20)), (*second, 255), -1, cv2.LINE_AA)
    elif kind in (1, 4):
        if kind == 1:
            cv2.rectangle(picture, (2, 6), (125, 57), opaque, -1)
        text = "".join(_LETTERS[int(letter)] for letter in generator.integers(len(_LETTERS), size=4))
        cv2.putText(picture, text, (6, 48), cv2.FONT_HERSHEY_SIMPLEX, 1.35, (*second, 255), 7, cv2.LINE_AA)
    elif kind == 2:
        corners = int(generator.integers(3, 6))
        angles = np.arange(2 * corners) * np.pi / corners - np.pi / 2
        radii = np.where(np.arange(2 * corners) % 2, generator.uniform(12, 24), 30.0)
        star = np.stack([32 + radii * np.cos(angles), 32 + radii * np.sin(angles)], 1)
        cv2.fillPoly(picture, [np.round(star).astype(np.int32)], opaque, cv2.LINE_AA)
    elif kind == 3:
        cv2.rectangle(picture, (3, 3), (60, 60), opaque, -1)
        cv2.rectangle(picture, (3, 3), (60, 31), (*second, 255), -1)
    else:
        cv2.ellipse(picture, (32, 32), (29, 20), 0, 0, 360, opaque, -1, cv2.LINE_AA)
        cv2.line(picture, (10, 32), (54, 32), (*second, 255), 8, cv2.LINE_AA)
    return picture


def _letter_plates(canvases: Canvases, style: Style, generator: np.random.Generator) -> None:
    s, ink = style.shape, (225, 225, 225) if sum(style.plate) < 330 else (30, 30, 30)
    text = "".join(_LETTERS[int(letter)] for letter in generator.integers(len(_LETTERS), size=6))
    plate = filled_picture(40, 160, (*ink, 0))
    cv2.putText(plate, text, (6, 32), cv2.FONT_HERSHEY_SIMPLEX, 1.15, (*ink, 170), 3, cv2.LINE_AA)
    plate = np.asarray(cv2.GaussianBlur(plate, (0, 0), 4.0))  # real plates are blurred in the public data sets too
    for chart, height in ((Chart.FRONT, fog_lamp_height(s)), (Chart.REAR, rear_plate_height(s))):
        canvases[chart].paste(plate, (0.0, height), 0.42)


def _side_decal(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    if s.box_height > s.height:
        x = generator.uniform(-s.half + 0.6, s.body_end - 0.6)
        z, width = generator.uniform(s.box_floor + 0.35, s.box_height - 0.3), 0.7
    else:
        behind = s.axles[-1] + 0.35 if not s.box_height else s.body_end + 0.2
        x = generator.uniform(behind, s.axles[0] - 0.45 if not s.box_height else s.half - 0.5)
        z, width = generator.uniform(s.clearance + 0.28, s.belt_front - 0.14), 0.3 if s.kind != "bus" else 0.6
    canvas.paste(
        draw_sticker(generator), (x, z), width * scale * generator.uniform(0.8, 1.3), generator.uniform(-12, 12)
    )


def _side_window_sticker(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    x = generator.uniform(s.rear_base + 0.5, s.screen_top - 0.2)
    canvas.paste(
        draw_sticker(generator), (x, 0.6 * s.belt_front + 0.4 * s.height), 0.2 * scale, generator.uniform(-8, 8)
    )


def _stripe(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    x0 = generator.uniform(s.axles[-1], s.axles[0] - 0.9)
    length, z = generator.uniform(0.5, 1.3), generator.uniform(s.clearance + 0.25, s.belt_front - 0.1)
    colour, rise = _colour(generator), generator.uniform(-0.1, 0.1)
    for offset in (0.0, 0.07 * scale):
        canvas.line([(x0, z + offset), (x0 + length, z + rise + offset)], colour, 0.035 * scale)


def _scratch(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    x, z = generator.uniform(s.axles[-1], s.axles[0]), generator.uniform(s.clearance + 0.25, s.belt_front - 0.15)
    length = generator.uniform(0.3, 0.7) * scale
    bright = sum(cv2.mean(canvas.picture)[:3]) < 330
    for _ in range(3):
        colour = (205, 205, 205) if bright else (62, 66, 74)
        start, end = generator.normal(0, 0.04, 2), generator.normal(0, 0.05, 2)
        canvas.line([(x + start[0], z + start[1]), (x + length + end[0], z + end[1] + 0.05)], colour, 0.016 * scale, 5)
    rust = (48, 80, 120) if generator.random() < 0.5 else (95, 95, 95)
    canvas.ellipse((x + 0.4 * length, z), (0.07 * scale, 0.045 * scale), rust, 5)


def _windscreen_sticker(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    foot = float(s.cabin_half_width(s.cowl, s.belt_front)) - 0.2
    high = s.height - 0.1
    side = float(generator.choice([-1.0, 1.0]))
    tall = high - s.belt_front
    for step in range(int(generator.integers(1, 4))):
        y = side * (0.72 * foot - 0.14 * step * scale)
        z = high - (0.18 + generator.uniform(0, 0.08)) * tall
        canvas.rectangle(
            (y - 0.055 * scale, z - 0.05 * scale), (y + 0.055 * scale, z + 0.04 * scale), _colour(generator), 60
        )
    if generator.random() < 0.5:
        canvas.paste(draw_sticker(generator), (-side * 0.6 * foot, s.belt_front + 0.3 * tall), 0.18 * scale)


def _dashboard(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    foot = float(s.cabin_half_width(s.cowl, s.belt_front)) - 0.2
    tall = s.height - 0.1 - s.belt_front
    for _ in range(int(generator.integers(1, 4))):
        y, colour = generator.uniform(-foot, foot), _colour(generator)
        size = generator.uniform(0.06, 0.13) * scale
        if generator.random() < 0.5:
            canvas.ellipse((y, s.belt_front + 0.14 * tall), (size, 0.8 * size), colour, 90)
        else:
            canvas.rectangle(
                (y - size, s.belt_front + 0.05 * tall), (y + size, s.belt_front + 0.05 * tall + size), colour, 90
            )
    if generator.random() < 0.4:
        canvas.line([(0.0, s.height - 0.16), (0.0, s.height - 0.16 - 0.3 * tall)], (40, 40, 190), 0.03, 60)
        canvas.ellipse((0.0, s.height - 0.16 - 0.34 * tall), (0.05 * scale, 0.06 * scale), _colour(generator), 60)


def _bumper_sticker(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    wide = 0.62 * float(s.half_width(s.half - 0.05))
    y = float(generator.choice([-1.0, 1.0])) * generator.uniform(0.55, 1.0) * wide
    z = (
        fog_lamp_height(s) + 0.12
        if canvas.chart == Chart.FRONT
        else rear_plate_height(s) + generator.uniform(-0.12, 0.1)
    )
    canvas.paste(draw_sticker(generator), (y, z), 0.2 * scale, generator.uniform(-10, 10))


def _bonnet_mark(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    wide = 0.5 * s.width
    y = generator.uniform(-0.7, 0.7) * wide
    z = head_lamp_height(s) + generator.uniform(0.06, 0.12)
    canvas.ellipse((y, z), (0.13 * scale, 0.05 * scale), _colour(generator), 30)
    canvas.line([(y - 0.2 * scale, z - 0.05), (y + 0.16 * scale, z - 0.02)], (210, 210, 210), 0.02 * scale, 10)


def _rear_sticker(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    wide = 0.75 * float(s.half_width(-s.half + 0.05))
    if s.box_height > s.height:
        z, width = generator.uniform(s.box_floor + 0.3, s.box_height - 0.3), 0.5
    else:
        low, high = s.clearance + 0.3, s.tail_height - 0.05
        z, width = generator.uniform(low, high), 0.24
    y = float(generator.choice([-1.0, 1.0])) * generator.uniform(0.3, 0.95) * wide
    canvas.paste(
        draw_sticker(generator), (y, z), width * scale * generator.uniform(0.8, 1.3), generator.uniform(-12, 12)
    )


def _rear_window(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    if s.box_height:
        _rear_sticker(canvas, s, generator, scale)
        return
    foot = 0.32 * s.width
    low, high = s.belt_rear + (0.48 if s.kind == "bus" else 0.06), s.height - 0.18
    y, z = generator.uniform(-foot, foot), low + generator.uniform(0.15, 0.7) * (high - low)
    canvas.paste(draw_sticker(generator), (y, z), 0.24 * scale, generator.uniform(-8, 8))


def _roof_mark(canvas: Canvas, s: BodyShape, generator: np.random.Generator, scale: float) -> None:
    x = generator.uniform(s.roof_end + 0.2, s.screen_top - 0.25)
    if s.box_height > s.height:
        x = generator.uniform(-s.half + 0.4, s.body_end - 0.5)
    elif s.half - s.cowl > 0.7 and generator.random() < 0.5:
        x = generator.uniform(s.cowl + 0.25, s.half - 0.3)
    y = generator.uniform(-0.3, 0.3) * s.width
    canvas.paste(draw_sticker(generator), (x, y), 0.35 * scale, generator.uniform(0, 360))
