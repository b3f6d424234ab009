"""Parametric vehicle bodies: a profile for each kind of vehicle, lofted into triangles, with the 20 keypoints on them.

Convention: metres in the vehicle's own frame, `x` forward, `y` to the vehicle's left, `z` up, origin on the ground
under the middle of the vehicle. Triangles are counter-clockwise seen from outside. Each belongs to a `Part` (drawing
order, self-occlusion) and a `Chart` (the picture that is projected on it along one axis).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from reid.data.synthetic_mesh import Chart, Floats, Mesh, MeshBuilder, Part

BodyKind = Literal["sedan", "hatchback", "suv", "van", "truck", "bus"]


@dataclass(frozen=True, slots=True)
class BodyShape:
    """The side profile and the widths of one vehicle model, in metres; `x` values are positions along the vehicle."""

    kind: BodyKind
    length: float
    width: float
    height: float
    """Roof of the cabin."""
    clearance: float
    wheel_radius: float
    axles: tuple[float, ...]
    """`x` of the axles, front first."""
    nose_height: float
    """Front edge of the bonnet."""
    belt_front: float
    """Lower edge of the side windows at the windscreen; the bonnet ends there."""
    belt_rear: float
    tail_height: float
    """Rear edge of the boot lid."""
    cowl: float
    """`x` of the foot of the windscreen."""
    screen_top: float
    roof_end: float
    rear_base: float
    """`x` of the foot of the rear window."""
    tumblehome: float
    """How much each side leans inwards per metre of height above the belt."""
    end_round: float
    """How much narrower the body is at its ends, as a share of the width."""
    end_zone: float
    """Length over which it narrows."""
    body_end: float
    """`x` of the rear of the cabin's body; -length/2 except for trucks."""
    box_height: float = 0.0
    """Top of a truck's load box; 0: none."""
    box_floor: float = 0.0

    @property
    def half(self) -> float:
        """Half the length: `x` of the front bumper."""
        return self.length / 2

    def top(self, x: Floats | float) -> Floats:
        """Height of the lower body's upper edge (bonnet, belt, boot) at `x`."""
        knots = [
            (self.half, self.nose_height * 0.84),
            (self.half - 0.05, self.nose_height * 0.94),
            (self.half - 0.14, self.nose_height),
            ((self.half + self.cowl) / 2, 0.42 * self.nose_height + 0.58 * self.belt_front + 0.012),
            (self.cowl, self.belt_front),
            (self.rear_base, self.belt_rear),
            (self.body_end + 0.1, self.tail_height),
            (self.body_end, self.tail_height * 0.95),
        ]
        knots.sort()
        return np.asarray(np.interp(x, [knot[0] for knot in knots], [knot[1] for knot in knots]))

    def half_width(self, x: Floats | float) -> Floats:
        """Half the width of the lower body at `x`: rounded at both ends."""
        x = np.asarray(x, dtype=np.float64)
        middle = (self.half + self.body_end) / 2
        inside = (self.half - self.body_end) / 2 - self.end_zone
        into = np.clip((np.abs(x - middle) - inside) / self.end_zone, 0.0, 1.0)
        rear = 1.0 if self.kind != "truck" else 0.3
        strength = np.where(x > middle, self.end_round, 0.75 * self.end_round * rear)
        return 0.5 * self.width * (1.0 - strength * into**2.4)

    def cabin_half_width(self, x: Floats | float, z: Floats | float) -> Floats:
        """Half the width of the cabin (greenhouse) at height `z`."""
        belt = np.interp(x, [self.rear_base, self.cowl], [self.belt_rear, self.belt_front])
        width = np.minimum(0.475 * self.width, 0.965 * self.half_width(x))
        return np.asarray(width - self.tumblehome * np.maximum(np.asarray(z) - belt, 0.0))


def make_shape(kind: BodyKind, generator: np.random.Generator) -> BodyShape:
    """A random model of the given kind, with the proportions of its class."""

    def draw(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    if kind == "bus":
        length, height = draw(8.5, 11.5), draw(2.9, 3.2)
        half, belt = length / 2, draw(1.1, 1.3)
        axles = (half - draw(1.9, 2.4), -half + draw(2.3, 3.0))
        return BodyShape(
            kind, length, draw(2.35, 2.5), height, 0.32, 0.47, axles, belt - 0.05, belt, belt, belt + 0.02,
            half - 0.03, half - draw(0.15, 0.35), -half + 0.16, -half + 0.03, 0.045, draw(0.07, 0.12), 0.3, -half,
        )  # fmt: skip
    if kind == "truck":
        length, cab = draw(5.6, 7.6), draw(1.65, 2.0)
        half, belt, height = length / 2, draw(1.25, 1.4), draw(2.15, 2.5)
        floor = draw(0.95, 1.1)
        box = floor + (draw(1.5, 2.1) if generator.random() < 0.75 else draw(0.45, 0.65))
        return BodyShape(
            kind, length, draw(2.0, 2.3), height, 0.38, 0.42, (half - 1.05, -half + draw(1.2, 1.6)), belt - 0.05, belt,
            belt, belt, half - 0.05, half - draw(0.25, 0.5), half - cab + 0.06, half - cab + 0.02, 0.09,
            draw(0.08, 0.14), 0.25, half - cab, box, floor,
        )  # fmt: skip
    if kind == "van":
        length, height = draw(4.5, 5.5), draw(1.85, 2.25)
        half, belt, hood = length / 2, draw(1.02, 1.12), draw(0.35, 0.75)
        return BodyShape(
            kind, length, draw(1.78, 1.95), height, 0.22, 0.33, (half - draw(0.75, 0.9), -half + draw(0.85, 1.1)),
            belt - draw(0.12, 0.2), belt, belt, belt + 0.01, half - hood, half - hood - draw(0.55, 0.8), -half + 0.17,
            -half + 0.05, 0.1, draw(0.14, 0.2), 0.4, -half,
        )  # fmt: skip
    if kind == "suv":
        length, height = draw(4.3, 4.85), draw(1.66, 1.8)
        half, belt, hood = length / 2, draw(1.04, 1.12), draw(1.1, 1.3)
        return BodyShape(
            kind, length, draw(1.82, 1.94), height, 0.24, 0.37, (half - draw(0.85, 0.95), -half + draw(0.88, 1.0)),
            belt - draw(0.14, 0.2), belt, belt + 0.03, belt + 0.02, half - hood, half - hood - draw(0.6, 0.75),
            -half + draw(0.3, 0.5), -half + draw(0.08, 0.15), draw(0.24, 0.32), draw(0.2, 0.27), 0.5, -half,
        )  # fmt: skip
    if kind == "hatchback":
        length, height = draw(3.75, 4.25), draw(1.46, 1.58)
        half, belt, hood = length / 2, draw(0.93, 1.0), draw(0.95, 1.15)
        return BodyShape(
            kind, length, draw(1.68, 1.8), height, 0.19, 0.32, (half - draw(0.75, 0.85), -half + draw(0.68, 0.8)),
            belt - draw(0.18, 0.25), belt, belt + 0.04, belt + 0.0, half - hood, half - hood - draw(0.65, 0.8),
            -half + draw(0.45, 0.65), -half + draw(0.1, 0.2), draw(0.3, 0.4), draw(0.22, 0.3), 0.5, -half,
        )  # fmt: skip
    length, height = draw(4.4, 4.95), draw(1.42, 1.5)
    half, belt, hood = length / 2, draw(0.91, 0.97), draw(1.15, 1.4)
    return BodyShape(
        "sedan", length, draw(1.74, 1.86), height, 0.18, 0.33, (half - draw(0.85, 0.95), -half + draw(0.95, 1.1)),
        belt - draw(0.2, 0.26), belt, belt + 0.05, belt + draw(0.02, 0.07), half - hood, half - hood - draw(0.7, 0.85),
        -half + draw(1.25, 1.5), -half + draw(0.5, 0.75), draw(0.32, 0.42), draw(0.2, 0.28), 0.55, -half,
    )  # fmt: skip


def build_mesh(shape: BodyShape, fittings: tuple[tuple[float, ...], ...] = ()) -> Mesh:
    """The vehicle as triangles.

    Args:
        shape: the model.
        fittings: boxes `(x0, y0, z0, x1, y1, z1)` on the roof of this individual (racks, signs), in metres.
    """
    bare = _bare_mesh(shape)
    if not fittings:
        return bare
    builder = MeshBuilder()
    for x0, y0, z0, x1, y1, z1 in fittings:
        builder.box((x0, y0, z0), (x1, y1, z1), Part.FITTINGS)
    boxes = builder.finish()
    return Mesh(
        np.concatenate([bare.vertices, boxes.vertices]),
        np.concatenate([bare.normals, boxes.normals]),
        np.concatenate([bare.triangles, boxes.triangles + len(bare.vertices)]),
        np.concatenate([bare.parts, boxes.parts]),
        np.concatenate([bare.charts, boxes.charts]),
        np.concatenate([bare.wheel_x, boxes.wheel_x]),
    )


@lru_cache(maxsize=32)
def _bare_mesh(shape: BodyShape) -> Mesh:
    builder = MeshBuilder()
    _add_lower_body(builder, shape)
    _add_cabin(builder, shape)
    if shape.box_height:
        inset = 0.02
        builder.box(
            (-shape.half, -shape.width / 2 - inset, shape.box_floor),
            (shape.body_end - 0.12, shape.width / 2 + inset, shape.box_height),
            Part.BOX,
        )
        builder.box(
            (-shape.half + 0.02, -0.46 * shape.width, shape.box_floor - 0.42),
            (shape.body_end, 0.46 * shape.width, shape.box_floor),
            Part.CHASSIS,
        )
    _add_wheels(builder, shape)
    for side, part in ((1.0, Part.LEFT_MIRROR), (-1.0, Part.RIGHT_MIRROR)):
        x, y, z = mirror_centre(shape, side)
        size = (0.07, 0.11, 0.09) if shape.height < 2.0 else (0.07, 0.12, 0.2)
        builder.box((x - size[0], y - size[1], z - size[2]), (x + size[0], y + size[1], z + size[2]), part)
    return builder.finish()


def mirror_centre(shape: BodyShape, side: float) -> tuple[float, float, float]:
    """Centre of the outside mirror; `side` +1 left, -1 right."""
    high = shape.kind in ("bus", "truck")
    x = shape.half - 0.12 if high else shape.cowl - 0.38
    return x, side * (shape.width / 2 + (0.13 if high else 0.08)), shape.belt_front + (0.55 if high else 0.08)


def _add_lower_body(builder: MeshBuilder, shape: BodyShape) -> None:
    front = shape.half - np.array([0.0, 0.03, 0.08, 0.16, 0.28, 0.42, 0.6])
    rear = shape.body_end + np.array([0.45, 0.3, 0.18, 0.09, 0.03, 0.0])
    inner = np.linspace(front[-1], rear[0], 7)[1:-1]
    stations = np.unique(np.concatenate([front, inner, rear]))[::-1]
    top, width = shape.top(stations), shape.half_width(stations)
    end = np.minimum(np.abs(stations - shape.half), np.abs(stations - shape.body_end))
    bottom = shape.clearance + 0.07 * np.clip(1 - end / 0.4, 0.0, 1.0)
    tall = top - bottom
    crown = 0.045 * shape.width / 1.8
    share = np.array([0.93, 0.985, 1.0, 0.985, 0.945, 0.8, 0.4, 0.0])
    heights = np.stack(
        [bottom, bottom + 0.16 * tall, bottom + 0.5 * tall, top - 0.13 * tall, top - 0.025,
         top + 0.35 * crown, top + 0.85 * crown, top + crown], 1,
    )  # fmt: skip
    left = np.stack([np.repeat(stations[:, None], 8, 1), width[:, None] * share, heights], -1)
    ring = np.concatenate([left, left[:, -2::-1] * [1, -1, 1]], 1)
    roles = np.array([Chart.LEFT] * 4 + [Chart.TOP] * 6 + [Chart.RIGHT] * 4, dtype=np.int64)
    charts = np.repeat(roles[None], len(stations) - 1, 0)
    quads = ring[1:, 1:] - ring[:-1, :-1]
    normal = np.cross(quads, ring[1:, :-1] - ring[:-1, 1:])
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    charts[np.abs(normal[..., 0]) > 0.6] = int(Chart.FRONT)
    middle = (shape.half + shape.body_end) / 2
    behind = (ring[:-1, :-1, 0] < middle) & (charts == int(Chart.FRONT))
    charts[behind] = int(Chart.REAR)
    inside = (middle, 0.0, 0.6)
    builder.sheet(ring, Part.LOWER, charts, inside)
    for station, chart in ((0, Chart.FRONT), (len(stations) - 1, Chart.REAR)):
        cap = np.stack([left[station], left[station] * [1, -1, 1]], 1)
        builder.sheet(cap, Part.LOWER, np.full((7, 1), int(chart)), inside)


def _add_cabin(builder: MeshBuilder, shape: BodyShape) -> None:
    h = shape.height
    screen = [(0.0, 0.0), (0.35, 0.37), (0.7, 0.73), (1.0, 1.0)]
    stations: list[tuple[float, float, Chart]] = []
    for along, up in screen:
        x = shape.cowl + along * (shape.screen_top - shape.cowl)
        stations.append((x, shape.belt_front + up * (h - 0.05 - shape.belt_front), Chart.FRONT))
    roof = shape.screen_top - shape.roof_end
    stations += [
        (shape.screen_top - 0.05 * roof, h - 0.02, Chart.TOP),
        (shape.screen_top - 0.35 * roof, h, Chart.TOP),
        (shape.screen_top - 0.7 * roof, h - 0.005, Chart.TOP),
        (shape.screen_top - 0.95 * roof, h - 0.03, Chart.TOP),
        (shape.roof_end, h - 0.06, Chart.TOP),
    ]
    for along, up in ((0.35, 0.68), (0.7, 0.33), (1.0, 0.0)):
        x = shape.roof_end + along * (shape.rear_base - shape.roof_end)
        stations.append((x, shape.belt_rear + up * (h - 0.06 - shape.belt_rear), Chart.REAR))
    rows, roles = [], []
    for x, z, _ in stations:
        floor = float(shape.top(x)) - 0.03
        z = max(z, floor + 0.005)
        shoulder = max(z - 0.07, floor)
        outer = float(shape.cabin_half_width(x, floor))
        upper = float(shape.cabin_half_width(x, shoulder))
        edge = max(upper - 0.06, 0.0)
        crown = 0.05 * shape.width / 1.8
        bulge = (0.09 if x > shape.screen_top - 0.02 else (-0.07 if x < shape.roof_end + 0.02 else 0.0)) * min(
            1.0, abs(shape.cowl - shape.screen_top) / 0.4
        )
        left = [(x, outer, floor), (x, upper, shoulder), (x, edge, z)]
        left += [(x + bulge * (1 - s * s), edge * s, z + crown * (1 - s * s)) for s in (0.66, 0.33, 0.0)]
        rows.append(left + [(px, -py, pz) for px, py, pz in left[-2::-1]])
    for _, _, role in stations[1:]:
        roles.append([Chart.LEFT] * 2 + [role] * 6 + [Chart.RIGHT] * 2)
    charts = np.array(roles, dtype=np.int64)
    charts[3] = [int(Chart.LEFT)] * 2 + [int(Chart.TOP)] * 6 + [int(Chart.RIGHT)] * 2
    builder.sheet(np.array(rows, dtype=np.float64), Part.CABIN, charts, ((shape.cowl + shape.rear_base) / 2, 0.0, 0.5))


def _add_wheels(builder: MeshBuilder, shape: BodyShape) -> None:
    angles = np.linspace(0, 2 * np.pi, 15)
    radius = shape.wheel_radius
    for x in shape.axles:
        rim = np.stack([x + radius * np.cos(angles), np.zeros(15), radius + radius * np.sin(angles)], -1)
        for side in (1.0, -1.0):
            y = side * (shape.width / 2 + 0.012)
            outer, inner = (rim + np.array([0.0, across, 0.0]) for across in (y, y - side * 0.24))
            dark, middle = np.full((1, 14), int(Chart.DARK)), (x, y - side * 0.12, radius)
            builder.sheet(np.stack([outer, inner], 0), Part.TYRES, dark, middle)
            centre = np.repeat([[x, y, radius]], 15, 0)
            before = len(builder.wheel_x)
            builder.sheet(np.stack([outer, centre], 0), Part.DISCS, np.full((1, 14), int(Chart.WHEEL)), middle)
            builder.wheel_x[before:] = [x] * (len(builder.wheel_x) - before)
