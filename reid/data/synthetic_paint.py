"""Paints a vehicle model on the canvases of its sides: windows, lamps, doors, grille, plates, wheels.

Everything here is shared by all identities of one model; what tells them apart is in `synthetic_marks`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from reid.data.synthetic_keypoints import (
    fog_lamp_height,
    head_lamp_height,
    logo_height,
    rear_lamp_height,
    rear_lamp_offset,
    rear_plate_height,
)
from reid.data.synthetic_mesh import Chart
from reid.data.synthetic_styles import Style
from reid.data.synthetic_surfaces import Canvas, Colour, new_canvases, shade

GLASS: Final[Colour] = (44, 40, 36)
_BLACK: Final[Colour] = (30, 29, 28)
_CHROME: Final[Colour] = (190, 188, 186)


def paint_vehicle(style: Style) -> dict[Chart, Canvas]:
    """The five sides and the wheel of a model without any individual mark."""
    canvases = new_canvases(style.shape, style.paint)
    for chart in (Chart.LEFT, Chart.RIGHT):
        _paint_side(canvases[chart], style)
    _paint_front(canvases[Chart.FRONT], style)
    _paint_rear(canvases[Chart.REAR], style)
    _paint_top(canvases[Chart.TOP], style)
    _paint_wheel(canvases[Chart.WHEEL], style)
    return canvases


def _lamp(canvas: Canvas, low: tuple[float, float], high: tuple[float, float], colour: Colour) -> None:
    canvas.rectangle(low, high, shade(colour, 0.45), 120)
    (a, b), (c, d) = low, high
    inset = 0.18
    canvas.rectangle(
        (a + inset * (c - a), b + inset * (d - b)), (c - inset * (c - a), d - inset * (d - b)), colour, 160
    )


def _paint_side(canvas: Canvas, style: Style) -> None:
    s, seam = style.shape, shade(style.paint, 0.55)
    front, back = s.half, s.body_end
    if s.box_height:
        canvas.rectangle((-s.half, s.box_floor), (s.body_end - 0.1, s.box_height + 0.2), style.second_paint, 20)
        for x in np.arange(-s.half + 0.35, s.body_end - 0.2, 0.45):
            canvas.line([(x, s.box_floor), (x, s.box_height)], shade(style.second_paint, 0.78), 0.025)
        canvas.rectangle((-s.half, s.box_floor - 0.06), (s.body_end - 0.1, s.box_floor + 0.03), (60, 60, 60), 10)
        canvas.rectangle((-s.half, s.box_floor - 0.45), (s.body_end - 0.05, s.box_floor - 0.06), (45, 44, 42), 5)
    if style.two_tone and s.kind == "bus":
        canvas.rectangle((-s.half, s.clearance + 0.25), (s.half, s.clearance + 0.62), style.second_paint)
        canvas.polygon(
            [
                (0.1 * s.half, s.clearance),
                (0.45 * s.half, s.height),
                (0.3 * s.half, s.height),
                (-0.05 * s.half, s.clearance),
            ],
            style.second_paint,
        )
    elif style.two_tone and not s.box_height:
        canvas.rectangle((-s.half, s.height - 0.09), (s.half, s.height + 0.2), style.second_paint)
    # sill, crease, lower trim
    canvas.rectangle((back, 0.0), (front, s.clearance + (0.14 if style.lower_trim else 0.05)), _BLACK, 8)
    crease = s.clearance + 0.62 * (s.belt_front - s.clearance)
    canvas.line([(back + 0.2, crease), (front - 0.45, crease - 0.05)], shade(style.paint, 1.13), 0.03, 40)
    canvas.line([(back + 0.2, crease - 0.035), (front - 0.45, crease - 0.085)], shade(style.paint, 0.82), 0.025, 40)
    _paint_side_windows(canvas, style)
    # doors
    if s.kind in ("bus", "truck"):
        if s.kind == "truck":
            for x in (s.half - 0.35, s.body_end + 0.15):
                canvas.line([(x, s.clearance + 0.1), (x, s.belt_front + 0.6)], seam)
            canvas.rectangle((s.body_end + 0.25, s.belt_front - 0.16), (s.body_end + 0.42, s.belt_front - 0.1), _BLACK)
        elif canvas.chart == Chart.RIGHT:
            for x in (s.half - 0.35, -0.05 * s.half):
                canvas.rectangle((x - 1.15, s.clearance + 0.08), (x, s.height - 0.35), _BLACK, 30)
                for part in (0.06, 0.61):
                    canvas.rectangle((x - part - 0.48, s.clearance + 0.2), (x - part, s.height - 0.42), GLASS, 190)
        else:
            for x in np.linspace(back + 0.8, front - 1.2, 5):
                canvas.line([(x, s.clearance + 0.08), (x, s.clearance + 0.55)], seam)
    else:
        doors = [s.cowl - 0.28, s.cowl - 1.25, s.cowl - 2.2]
        if s.kind == "hatchback" and style.pillars == 2:
            doors = [s.cowl - 0.22, s.cowl - 1.2, s.cowl - 1.95]
        for index, x in enumerate(doors):
            lean = -0.05 if index == 2 else 0.02
            canvas.line([(x, s.clearance + 0.12), (x + lean, s.belt_front)], seam, 0.014)
            if index:
                canvas.rectangle((x + 0.1, crease + 0.05), (x + 0.29, crease + 0.1), shade(style.paint, 0.7), 60)
        canvas.line([(doors[0], s.clearance + 0.13), (doors[2], s.clearance + 0.13)], seam, 0.014)
        if canvas.chart == Chart.RIGHT:
            x = back + 0.75
            canvas.rectangle((x, crease + 0.02), (x + 0.16, crease + 0.18), shade(style.paint, 0.9), 40)
    # wheel arches, lamps that wrap round the corners, bumper seams
    for x in s.axles:
        canvas.ellipse((x, s.wheel_radius), (s.wheel_radius * 1.17, s.wheel_radius * 1.2), (22, 21, 20), 0)
        canvas.ellipse(
            (x, s.wheel_radius), (s.wheel_radius * 1.19, s.wheel_radius * 1.22),
            _BLACK if style.lower_trim else shade(style.paint, 0.75), 20, ring=0.03,
        )  # fmt: skip
    lamp = head_lamp_height(s)
    _lamp(
        canvas, (front - style.lamp_length, lamp - style.lamp_drop / 2), (front + 0.05, lamp + style.lamp_drop / 2),
        (222, 224, 222),
    )  # fmt: skip
    if not s.box_height:
        lamp = rear_lamp_height(s)
        tall = style.lamp_drop * (1.0 if s.kind == "sedan" else 1.7)
        _lamp(
            canvas,
            (back - 0.05, lamp - tall / 2),
            (back + 0.2 * style.lamp_length + 0.12, lamp + tall / 2),
            (40, 36, 170),
        )
        canvas.line([(back + 0.42, s.clearance + 0.1), (back + 0.3, s.tail_height * 0.62)], seam)
    canvas.line([(front - 0.48, s.clearance + 0.1), (front - 0.4, s.nose_height * 0.72)], seam)


def _paint_side_windows(canvas: Canvas, style: Style) -> None:
    s = style.shape
    low, high = s.belt_front + 0.05, s.height - (0.13 if s.kind != "bus" else 0.4)
    if s.kind == "bus":
        edges = np.linspace(s.rear_base + 0.35, s.cowl - 0.25, style.pillars + 1)
        canvas.rectangle((s.rear_base + 0.3, low - 0.04), (s.cowl - 0.2, high + 0.04), _BLACK, 40)
        for x0, x1 in pairwise(edges.tolist()):
            canvas.rectangle((x0 + 0.06, low), (x1 - 0.06, high), GLASS, 205)
            canvas.rectangle((x0 + 0.2, low), (x1 - 0.2, low + 0.28), shade(GLASS, 1.6), 170)
            canvas.line([(x0 + 0.06, high - 0.3), (x1 - 0.06, high - 0.3)], (85, 85, 85), 0.03)
            canvas.line([(x1, low), (x1, high)], (95, 95, 95), 0.03)
        return

    def slope(z: float, foot: float, head: float, belt: float) -> float:
        return foot + (head - foot) * (z - belt) / (s.height - 0.05 - belt)

    front_low = slope(low, s.cowl, s.screen_top, s.belt_front) - 0.2
    front_high = slope(high, s.cowl, s.screen_top, s.belt_front) - 0.1
    back_low = slope(low, s.rear_base, s.roof_end, s.belt_rear) + (0.24 if s.kind == "sedan" else 0.22)
    back_high = slope(high, s.rear_base, s.roof_end, s.belt_rear) + 0.12
    low_back = s.belt_rear + 0.05
    outline = [(front_low, low), (front_high, high), (back_high, high), (back_low, low_back)]
    grown = [(front_low + 0.05, low - 0.03), (front_high + 0.03, high + 0.03),
             (back_high - 0.03, high + 0.03), (back_low - 0.05, low_back - 0.03)]  # fmt: skip
    canvas.polygon(grown, _CHROME if style.grille == 2 else _BLACK, 60)
    canvas.polygon(outline, GLASS, 200)
    if s.kind == "truck":
        return
    bars = [s.cowl - 1.22] if style.pillars == 2 else [s.cowl - 1.25, s.cowl - 2.2]
    for x in bars:
        if back_low + 0.25 < x < front_high:
            canvas.rectangle((x - 0.055, low - 0.01), (x + 0.055, high + 0.01), _BLACK, 40)


def _paint_front(canvas: Canvas, style: Style) -> None:
    s, seam = style.shape, shade(style.paint, 0.55)
    wide = float(s.half_width(s.half - 0.1))
    fog, lamp = fog_lamp_height(s), head_lamp_height(s)
    if s.box_height > s.height:
        canvas.rectangle((-s.width, s.height - 0.02), (s.width, s.box_height + 0.2), style.second_paint, 20)
    # windscreen
    low, high = s.belt_front + 0.02, s.height - 0.1
    foot = float(s.cabin_half_width(s.cowl, low)) - 0.07
    head = float(s.cabin_half_width(s.screen_top, high)) - 0.1
    if style.two_tone and s.kind != "truck":
        canvas.rectangle((-s.width, high), (s.width, s.height + 0.15), style.second_paint)
    for rim, colour, gloss in ((0.03, _BLACK, 60), (0.0, GLASS, 205)):
        bottom, top = low - rim, high + rim
        outline = [(-foot - rim, bottom), (foot + rim, bottom), (head + rim, top), (-head - rim, top)]
        canvas.polygon(outline, colour, gloss)
    tall = high - low
    for y in (-0.42 * foot, 0.42 * foot):
        canvas.ellipse((y, low + 0.45 * tall), (0.17 * foot, 0.33 * tall), shade(GLASS, 1.35), 195)
    canvas.rectangle((-foot, low), (foot, low + 0.1 * tall), shade(GLASS, 0.7), 150)
    canvas.ellipse((0.0, high - 0.07 * tall), (0.09, 0.035), (20, 20, 20), 60)
    for y in (-0.75 * foot, 0.05 * foot):
        canvas.line([(y, low + 0.01), (y + 0.62 * foot, low + 0.07 * tall)], (15, 15, 15), 0.02)
    if s.kind == "bus":
        canvas.rectangle((-0.75 * head, high + 0.04), (0.75 * head, s.height - 0.02), _BLACK, 60)
        canvas.rectangle((-0.55 * head, high + 0.07), (0.45 * head, s.height - 0.05), (40, 120, 230), 20)
    # fascia
    top = s.nose_height * 0.93
    grille_low, grille_high = lamp - style.lamp_drop * 0.6, min(lamp + style.lamp_drop * 0.6, top)
    span = (0.42, 0.55, 0.5, 0.36)[style.grille] * wide
    canvas.line([(-wide, top), (wide, top)], seam, 0.02)
    if s.kind != "bus":
        canvas.rectangle((-span, grille_low), (span, grille_high), _BLACK, 30)
        bars = 4
        for step in range(1, bars):
            z = grille_low + (grille_high - grille_low) * step / bars
            if style.grille in (0, 2):
                canvas.line([(-span, z), (span, z)], _CHROME if style.grille == 2 else (75, 75, 75), 0.018, 90)
        if style.grille == 3:
            for y in np.linspace(-span, span, 10):
                canvas.line([(y, grille_low), (y, grille_high)], (95, 95, 95), 0.015, 90)
    canvas.rectangle((-0.55 * wide, fog - 0.13), (0.55 * wide, fog + 0.11), (35, 34, 33), 10)
    canvas.rectangle((-s.width, 0.0), (s.width, s.clearance + (0.16 if style.lower_trim else 0.1)), _BLACK, 8)
    inner = span + 0.03 if s.kind != "bus" else 0.62 * wide
    for side in (-1.0, 1.0):
        low_y, high_y = sorted((side * inner, side * (wide + 0.14)))
        _lamp(canvas, (low_y, lamp - style.lamp_drop / 2), (high_y, lamp + style.lamp_drop / 2), (222, 224, 222))
        canvas.ellipse((side * 0.84 * wide, fog), (0.1, 0.08), (35, 34, 33), 10)
        canvas.ellipse((side * 0.86 * wide, fog), (0.06, 0.055), (200, 205, 205), 120)
    canvas.ellipse((0.0, logo_height(s)), (0.085, 0.06), _CHROME, 140)
    canvas.ellipse((0.0, logo_height(s)), (0.05, 0.032), (70, 70, 72), 140)
    _plate(canvas, fog, style)


def _paint_rear(canvas: Canvas, style: Style) -> None:
    s, seam = style.shape, shade(style.paint, 0.55)
    wide = rear_lamp_offset(s)
    lamp, plate = rear_lamp_height(s), rear_plate_height(s)
    if s.box_height:
        canvas.rectangle((-s.width, s.box_floor), (s.width, s.box_height + 0.2), style.second_paint, 20)
        canvas.rectangle((-s.width, 0.0), (s.width, s.box_floor), (48, 47, 45), 8)
        if s.box_height > s.height:
            canvas.line([(0.0, s.box_floor), (0.0, s.box_height)], shade(style.second_paint, 0.5), 0.03)
            for y in (-0.25, -0.12, 0.12, 0.25):
                canvas.line([(y, s.box_floor + 0.05), (y, s.box_height - 0.05)], (140, 140, 140), 0.03)
        canvas.rectangle((-s.width, s.box_floor - 0.05), (s.width, s.box_floor + 0.06), (60, 60, 60), 10)
    else:
        low, high = s.belt_rear + 0.03, s.height - 0.13
        foot = float(s.cabin_half_width(s.rear_base, low)) - 0.1
        head = float(s.cabin_half_width(s.roof_end, high)) - 0.12
        if s.kind == "bus":
            low, foot, head = low + 0.45, foot - 0.05, head - 0.05
        if style.two_tone:
            canvas.rectangle((-s.width, high), (s.width, s.height + 0.15), style.second_paint)
        canvas.polygon([(-foot, low), (foot, low), (head, high), (-head, high)], _BLACK, 60)
        foot, head = foot - 0.04, head - 0.04
        canvas.polygon([(-foot, low + 0.03), (foot, low + 0.03), (head, high - 0.03), (-head, high - 0.03)], GLASS, 200)
        for y in (-0.45 * foot, 0.45 * foot):
            canvas.ellipse((y, low + 0.2 * (high - low)), (0.15 * foot, 0.25 * (high - low)), shade(GLASS, 0.7), 190)
        if s.kind in ("hatchback", "suv", "van"):
            canvas.line([(0.0, low + 0.03), (-0.5 * foot, low + 0.14)], (15, 15, 15), 0.022)
        boot = s.tail_height * 0.6 if s.kind == "sedan" else s.clearance + 0.18 * (s.tail_height - s.clearance) + 0.12
        edge = [(0.75 * wide, s.tail_height), (0.72 * wide, boot)]
        canvas.line([(-edge[0][0], edge[0][1]), (-edge[1][0], boot), edge[1], edge[0]], seam, 0.018)
        if s.kind == "van" and style.grille % 2:
            canvas.line([(0.0, boot), (0.0, s.height - 0.1)], seam, 0.02)
        if s.kind == "bus":
            canvas.rectangle((-0.7 * wide, s.clearance + 0.25), (0.7 * wide, s.clearance + 0.5), (60, 58, 56), 10)
        canvas.rectangle((-0.35, plate - 0.1), (0.35, plate + 0.1), shade(style.paint, 0.75), 30)
        canvas.rectangle((-s.width, 0.0), (s.width, s.clearance + (0.2 if style.lower_trim else 0.08)), _BLACK, 8)
        canvas.line([(-wide, boot - 0.06), (wide, boot - 0.06)], shade(style.paint, 1.1), 0.03, 40)
        if style.grille == 2:
            canvas.rectangle((-0.35, plate + 0.11), (0.35, plate + 0.15), _CHROME, 120)
    tall = style.lamp_drop * (1.0 if s.kind == "sedan" else 1.7)
    long = 0.2 + 0.5 * style.lamp_length if not s.box_height else 0.16
    for side in (-1.0, 1.0):
        low_y, high_y = sorted((side * (wide - long), side * (wide + 0.12)))
        _lamp(canvas, (low_y, lamp - tall / 2), (high_y, lamp + tall / 2), (40, 36, 175))
        middle = side * (wide - 0.6 * long)
        canvas.rectangle((middle - 0.05, lamp - 0.1 * tall), (middle + 0.05, lamp + 0.25 * tall), (190, 195, 215), 120)
    canvas.ellipse((0.0, lamp), (0.07, 0.05), _CHROME if not s.box_height else (90, 90, 90), 140)
    _plate(canvas, plate, style)


def _plate(canvas: Canvas, height: float, style: Style) -> None:
    canvas.rectangle((-0.24, height - 0.075), (0.24, height + 0.075), style.plate, 20)
    canvas.rectangle((-0.225, height - 0.06), (0.225, height + 0.06), shade(style.plate, 0.93), 20)


def _paint_top(canvas: Canvas, style: Style) -> None:
    s, seam = style.shape, shade(style.paint, 0.6)
    wide = 0.45 * s.width
    if s.box_height:
        canvas.rectangle((-s.half, -s.width), (s.body_end - 0.1, s.width), shade(style.second_paint, 0.95), 15)
        if s.box_height < s.height:
            canvas.rectangle(
                (-s.half + 0.06, -s.width / 2 + 0.06), (s.body_end - 0.18, s.width / 2 - 0.06), (85, 95, 105), 0
            )
    if style.two_tone and s.kind not in ("bus", "truck"):
        canvas.rectangle((s.roof_end, -s.width), (s.screen_top, s.width), style.second_paint, 90)
    if s.kind == "bus":
        for x in (0.45 * s.half, -0.4 * s.half):
            canvas.rectangle((x - 0.9, -0.6), (x + 0.9, 0.6), (185, 185, 182), 10)
            canvas.rectangle((x - 0.75, -0.45), (x + 0.75, 0.45), (150, 150, 148), 10)
        return
    if s.kind == "truck":
        return
    if style.sunroof:
        middle = 0.6 * s.screen_top + 0.4 * s.roof_end
        canvas.rectangle((middle - 0.38, -0.42), (middle + 0.38, 0.42), GLASS, 180)
    if s.half - s.cowl > 0.5:
        canvas.line([(s.cowl + 0.02, -0.9 * wide), (s.half - 0.2, -0.72 * wide)], seam, 0.014)
        canvas.line([(s.cowl + 0.02, 0.9 * wide), (s.half - 0.2, 0.72 * wide)], seam, 0.014)
        for y in (-0.35 * wide, 0.35 * wide):
            canvas.line([(s.cowl + 0.1, 1.25 * y), (s.half - 0.25, y)], shade(style.paint, 1.08), 0.04, 50)
        canvas.rectangle((s.cowl - 0.02, -0.92 * wide), (s.cowl + 0.1, 0.92 * wide), _BLACK, 15)
    if s.kind == "sedan":
        canvas.line([(s.rear_base, -0.85 * wide), (-s.half, -0.8 * wide)], seam, 0.014)
        canvas.line([(s.rear_base, 0.85 * wide), (-s.half, 0.8 * wide)], seam, 0.014)


def _paint_wheel(canvas: Canvas, style: Style) -> None:
    radius = style.shape.wheel_radius
    canvas.picture[:] = (26, 25, 24, 0)
    canvas.ellipse((0, 0), (0.66 * radius, 0.66 * radius), shade(style.rim, 0.4), 10)
    for spoke in range(style.spokes):
        angle = 2 * np.pi * spoke / style.spokes
        canvas.line([(0, 0), (0.6 * radius * np.cos(angle), 0.6 * radius * np.sin(angle))], style.rim, 0.05, 60)
    canvas.ellipse((0, 0), (0.63 * radius, 0.63 * radius), style.rim, 60, ring=0.03)
    canvas.ellipse((0, 0), (0.16 * radius, 0.16 * radius), shade(style.rim, 0.85), 60)
