"""One image of a synthetic vehicle: the configuration of the data set, and body, marks, camera and scene put together.

Many identities share model and colour and differ only in small marks, so that a network has to look at details; each
image is a function of (seed, identity, camera, shot) alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal, Self, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from reid.contracts import Settings
from reid.data.synthetic_bodies import BodyShape, build_mesh
from reid.data.synthetic_cameras import Passage, Projection, RoadCamera, look_at, make_camera, make_passage
from reid.data.synthetic_keypoints import BodyKeypoints, orientation_code, place_keypoints, seen_from
from reid.data.synthetic_marks import draw_fittings, paint_fittings, paint_marks
from reid.data.synthetic_mesh import Chart, Mesh
from reid.data.synthetic_paint import paint_vehicle
from reid.data.synthetic_render import render_vehicle
from reid.data.synthetic_scene import develop, draw_ground, draw_obstacle
from reid.data.synthetic_styles import Style, make_style
from reid.data.synthetic_surfaces import Atlas, Canvas, join_canvases
from reid.data.synthetic_traffic import Neighbour, draw_before, draw_behind, draw_places, stand


class SyntheticConfig(Settings):
    """How many synthetic vehicles, how many pictures of each, and how hard they are to tell apart."""

    num_train_identities: int = Field(default=60, ge=1)
    """Identities 1..n are for training."""
    num_test_identities: int = Field(default=30, ge=0)
    """The following n identities are for query and gallery."""
    num_cameras: int = Field(default=8, ge=1, le=999)
    """Cameras in all."""
    cameras_per_identity: int = Field(default=5, ge=1)
    """How many of the cameras each vehicle passes."""
    images_per_camera: int = Field(default=2, ge=1)
    """Shots of one vehicle at one camera (one track)."""
    min_long_side: int = Field(default=96, ge=32)
    """Longer side of the smallest raw images, in pixels."""
    max_long_side: int = Field(default=300, le=1024)
    """Longer side of the largest raw images, in pixels."""
    group_size: int = Field(default=4, ge=1)
    """Identities that share model and colour; larger is harder."""
    unique_share: float = Field(default=0.2, ge=0.0, le=1.0)
    """Share of the identities that have a model and colour of their own; larger is easier."""
    min_marks: int = Field(default=3, ge=0)
    """Fewest marks on a vehicle; the first three are on front, rear and sides."""
    max_marks: int = Field(default=6, ge=0)
    mark_scale: float = Field(default=1.2, gt=0.0, le=3.0)
    """Size of the marks: 1 gives stickers of 10 to 35 cm, 3 to 8 pixels in a 128-pixel image; smaller is harder."""
    fitting_share: float = Field(default=0.35, ge=0.0, le=1.0)
    """Share of the identities with something on the roof (rails, box, sign, lamp bar)."""
    colour_cast: float = Field(default=1.0, ge=0.0, le=3.0)
    """How much cameras differ in colour, exposure and contrast; larger is harder."""
    degradation: float = Field(default=1.0, ge=0.0, le=3.0)
    """Strength of blur, noise and compression; larger is harder."""
    obstacles: float = Field(default=1.0, ge=0.0, le=3.0)
    """Factor on the share of images in which a post or another vehicle hides something (on average 8 %)."""
    traffic: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the four places around a vehicle (ahead, behind, beside) that others take; larger is harder."""
    seed: int = Field(default=0, ge=0)
    """Everything drawn follows from it."""

    @model_validator(mode="after")
    def _ranges_fit(self) -> Self:
        if self.cameras_per_identity > self.num_cameras:
            raise ValueError(
                f"cameras_per_identity {self.cameras_per_identity} exceeds num_cameras {self.num_cameras}: lower it"
            )
        if self.min_long_side > self.max_long_side:
            raise ValueError(
                f"min_long_side {self.min_long_side} is more than max_long_side {self.max_long_side}: swap them"
            )
        if self.min_marks > self.max_marks:
            raise ValueError(f"min_marks {self.min_marks} is more than max_marks {self.max_marks}: swap them")
        return self

    @property
    def num_identities(self) -> int:
        """Training and test identities together."""
        return self.num_train_identities + self.num_test_identities


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticImage:
    """One picture of a synthetic vehicle and everything known about it."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB, before compression."""
    keypoints: NDArray[np.float32]
    """(20, 3) x, y in pixels of `image` and visibility 0/1; positions are given for hidden points too."""
    mask: NDArray[np.uint8]
    """(H, W) 255 where the vehicle is seen, else 0."""
    orientation: int
    """Code of `reid.keypoints.ORIENTATION_NAMES`."""
    jpeg_quality: int
    """Quality at which this camera stores its images."""


@dataclass(frozen=True, slots=True)
class SyntheticVehicle:
    """One identity, ready to be drawn."""

    style: Style
    mesh: Mesh
    atlas: Atlas
    keypoints: BodyKeypoints


_Stream = Literal[
    "group", "unique", "style", "marks", "fittings", "camera", "track", "shot", "route", "traffic", "neighbour"
]
_STREAMS: tuple[_Stream, ...] = get_args(_Stream)
"""A stream is known by its place: new ones go to the end."""
_NEIGHBOURS: Final = 48
"""Models of other vehicles in traffic, without marks; none of them is an identity."""


def random_stream(config: SyntheticConfig, stream: _Stream, *numbers: int) -> np.random.Generator:
    """The random generator for one purpose and one thing: the same wherever and whenever it is asked for."""
    return np.random.default_rng([config.seed, _STREAMS.index(stream), *numbers])


def model_number(config: SyntheticConfig, identity: int) -> int:
    """Number of the model and colour of an identity: shared by its group, or its own (then not below 2 ** 20).

    Training and test identities never share a model.
    """
    if random_stream(config, "unique", identity).random() < config.unique_share:
        return (1 << 20) + identity
    if identity <= config.num_train_identities:
        return (identity - 1) // config.group_size
    return (1 << 18) + (identity - 1 - config.num_train_identities) // config.group_size


@lru_cache(maxsize=64)
def build_vehicle(config: SyntheticConfig, identity: int) -> SyntheticVehicle:
    """Body, paint and marks of an identity (1-based).

    Raises:
        ValueError: the identity is outside 1..num_identities.
    """
    if not 1 <= identity <= config.num_identities:
        raise ValueError(f"identity {identity} is outside 1..{config.num_identities} of this configuration")
    style = make_style(random_stream(config, "style", model_number(config, identity)))
    fittings = draw_fittings(style, random_stream(config, "fittings", identity), config.fitting_share)
    marks = random_stream(config, "marks", identity)
    bare = _painted_model(style)
    canvases = {chart: replace(canvas, picture=canvas.picture.copy()) for chart, canvas in bare.items()}
    paint_fittings(canvases, fittings, style)
    number = int(marks.integers(config.min_marks, config.max_marks + 1))
    paint_marks(canvases, style, marks, number, config.mark_scale)
    mesh = build_mesh(style.shape, tuple((*fitting.low, *fitting.high) for fitting in fittings))
    return SyntheticVehicle(style, mesh, join_canvases(canvases, style.shape), place_keypoints(style.shape))


@lru_cache(maxsize=16)
def _painted_model(style: Style) -> dict[Chart, Canvas]:
    """The canvases that all vehicles of a model share; to be copied before anything is painted on them."""
    return paint_vehicle(style)


@lru_cache(maxsize=256)
def build_camera(config: SyntheticConfig, camera: int) -> RoadCamera:
    """The camera of this number (1-based).

    Raises:
        ValueError: the camera is outside 1..num_cameras.
    """
    if not 1 <= camera <= config.num_cameras:
        raise ValueError(f"camera {camera} is outside 1..{config.num_cameras} of this configuration")
    return make_camera(camera, random_stream(config, "camera", camera), config.colour_cast, config.degradation)


def cameras_of(config: SyntheticConfig, identity: int) -> tuple[int, ...]:
    """The cameras (1-based, ascending) that an identity passes."""
    order = random_stream(config, "route", identity).permutation(config.num_cameras) + 1
    return tuple(sorted(int(camera) for camera in order[: config.cameras_per_identity]))


def draw_vehicle_image(config: SyntheticConfig, identity: int, camera: int, shot: int) -> SyntheticImage:
    """One image: a function of (config, identity, camera, shot) alone.

    Args:
        config: of the data set.
        identity: 1-based.
        camera: 1-based.
        shot: 0-based number of the image in the vehicle's track at this camera; any number can be drawn.

    Raises:
        ValueError: identity or camera does not exist.
    """
    vehicle, road_camera = build_vehicle(config, identity), build_camera(config, camera)
    track = random_stream(config, "track", identity, camera)
    chance = random_stream(config, "shot", identity, camera, shot)
    passage = make_passage(road_camera, track, chance)
    low, high = config.min_long_side, config.max_long_side
    start, end = road_camera.long_side
    long_side = low + (high - low) * float(chance.uniform(start, end)) ** 1.3
    projection, size, raw_size = _frame(vehicle, passage, long_side, chance)
    style = vehicle.style
    neighbours = _neighbours(config, vehicle, projection, passage, size, (identity, camera, shot))
    casters = [(style.shape, projection, passage), *((n.shape, n.projection, n.passage) for n in neighbours)]
    scene = draw_ground(road_camera, casters, size, chance)
    distance = float(np.linalg.norm(projection.position))
    draw_behind(scene, neighbours, distance, size)
    drawn = render_vehicle(style.shape, vehicle.mesh, vehicle.atlas, projection, passage, size)
    covered = drawn.triangle >= 0
    scene = np.asarray(cv2.copyTo(drawn.colour, covered.view(np.uint8), scene))
    hidden = draw_before(scene, covered, neighbours, distance, size)
    if chance.random() < road_camera.occluded * config.obstacles:
        colours, obstacle = draw_obstacle(size, chance)
        scene[obstacle] = colours[obstacle]
        hidden |= obstacle
    covered &= ~hidden
    mask = cv2.resize(covered.view(np.uint8) * np.uint8(255), raw_size, interpolation=cv2.INTER_LINEAR)
    return SyntheticImage(
        image=develop(scene, road_camera, passage, raw_size, chance),
        keypoints=_keypoints_in_image(vehicle, projection, size, raw_size, hidden),
        mask=np.where(mask > 127, np.uint8(255), np.uint8(0)),
        orientation=orientation_code(passage.azimuth),
        jpeg_quality=road_camera.jpeg_quality,
    )


def _neighbours(
    config: SyntheticConfig,
    vehicle: SyntheticVehicle,
    projection: Projection,
    passage: Passage,
    size: tuple[int, int],
    image: tuple[int, int, int],
) -> list[Neighbour]:
    """The vehicles around this one that the picture shows; `image` is (identity, camera, shot)."""
    if not config.traffic:
        return []
    chance = random_stream(config, "traffic", *image)
    neighbours = []
    for place in draw_places(config.traffic, chance):
        other = _build_neighbour(config, int(chance.integers(_NEIGHBOURS)))
        standing = stand(place, *other, vehicle.style.shape, projection, passage)
        if standing.is_seen(size):
            neighbours.append(standing)
    return neighbours


@lru_cache(maxsize=_NEIGHBOURS)
def _build_neighbour(config: SyntheticConfig, number: int) -> tuple[BodyShape, Mesh, Atlas]:
    """A vehicle of the traffic: a model of its own, without marks."""
    style = make_style(random_stream(config, "neighbour", number))
    return style.shape, build_mesh(style.shape, ()), join_canvases(_painted_model(style), style.shape)


def _frame(
    vehicle: SyntheticVehicle, passage: Passage, long_side: float, chance: np.random.Generator
) -> tuple[Projection, tuple[int, int], tuple[int, int]]:
    """The projection of a loose crop round the vehicle, its drawing size and its final size (width, height)."""
    shape = vehicle.style.shape
    tall = max(shape.height, shape.box_height)
    distance = passage.distance * max(shape.length, 3.5 * tall)
    view = look_at(passage.azimuth, passage.elevation, distance, 0.5 * tall, passage.roll)
    points = view.pixels(vehicle.mesh.vertices)
    low, high = points.min(0), points.max(0)
    extent = float((high - low).max())
    margins = chance.uniform(0.015, 0.11, 4) * extent
    if chance.random() < 0.15:
        margins[int(chance.integers(4))] = -chance.uniform(0.0, 0.06) * extent
    left, top = low - margins[:2]
    right, bottom = high + margins[2:]
    across, down = right - left, bottom - top
    zoom = long_side / max(across, down)
    raw_size = (max(16, round(across * zoom)), max(16, round(down * zoom)))
    drawing = min(max(1.45 * long_side, 160.0), max(240.0, long_side))
    size = (round(raw_size[0] * drawing / long_side), round(raw_size[1] * drawing / long_side))
    return view.cropped(left, top, size[0] / across), size, raw_size


def _keypoints_in_image(
    vehicle: SyntheticVehicle,
    projection: Projection,
    size: tuple[int, int],
    raw_size: tuple[int, int],
    hidden: NDArray[np.bool_],
) -> NDArray[np.float32]:
    points = projection.pixels(vehicle.keypoints.positions)
    columns, rows = np.round(points).astype(np.int64).T
    inside = (columns >= 0) & (rows >= 0) & (columns < size[0]) & (rows < size[1])
    seen = inside & seen_from(vehicle.keypoints, vehicle.mesh, projection.position)
    seen[inside] &= ~hidden[rows[inside], columns[inside]]
    points = (points + 0.5) * (np.array(raw_size) / np.array(size)) - 0.5
    within = (points > -0.5).all(1) & (points < np.array(raw_size) - 0.5).all(1)
    return np.concatenate([points, (seen & within)[:, None]], 1).astype(np.float32)
