"""Road cameras of the synthetic data set: where each one stands, its light, its colours, and how a vehicle passes it.

Convention: a camera looks at a point above the vehicle's origin from `azimuth` (degrees, 0 ahead of the vehicle, 90 on
its left) and `elevation` (degrees above the horizon). Image x to the right, y down. Directions of light are vehicle
coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reid.data.synthetic_mesh import Floats

VIEWS: Final = (22.0, 160.0, -26.0, 176.0, 4.0, -154.0, 40.0, 140.0, 30.0, -172.0, -12.0, 152.0)
"""Azimuth at which each camera in turn sees the traffic; about VeRi-776's mix of orientations."""


@dataclass(frozen=True, slots=True)
class RoadCamera:
    """A fixed camera beside or above a road."""

    azimuth: float
    elevation: float
    distance: float
    """In vehicle lengths."""
    roll: float
    sun: tuple[float, float]
    """Azimuth relative to the direction towards the camera, and height, in degrees."""
    direct: float
    """Share of direct light 0..1; the rest is diffuse sky."""
    exposure: float
    gains: tuple[float, float, float]
    """Colour cast: factors of blue, green, red."""
    gamma: float
    saturation: float
    haze: float
    blur: float
    """Gaussian sigma, as a share of a 256-pixel long side."""
    noise: float
    """Standard deviation in grey levels."""
    jpeg_quality: int
    long_side: tuple[float, float]
    """Quantiles of the configured size range from which this camera's crops are."""
    road: int
    """Seed of the road's texture."""
    occluded: float
    """Share of its images in which something stands in front of the vehicle."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One vehicle before one camera at one moment."""

    azimuth: float
    elevation: float
    distance: float
    roll: float
    light: Floats
    """(3,) unit, towards the sun, in the vehicle's frame."""
    direct: float
    brightness: float


@dataclass(frozen=True, slots=True)
class Projection:
    """A pinhole camera in the vehicle's frame."""

    position: Floats
    """(3,) metres."""
    axes: Floats
    """(3, 3) rows: image right, image down, forward; unit vectors."""
    focal: float
    """Pixels per unit of tangent."""
    centre: tuple[float, float]
    """Pixel of the optical axis."""

    def pixels(self, points: Floats) -> Floats:
        """(N, 2) image positions of (N, 3) points in front of the camera."""
        local = self.axes @ (points - self.position).T  # rows are faster than columns
        return np.asarray((local[:2] * (self.focal / local[2])).T + self.centre)

    def depths(self, points: Floats) -> Floats:
        """(N,) distance along the optical axis."""
        return np.asarray((points - self.position) @ self.axes[2])

    def rays(self) -> Floats:
        """(3, 3): the ray through pixel (x, y) is this matrix times (x, y, 1), with depth 1."""
        x, y = self.centre
        right, down, forward = self.axes
        return np.stack([right / self.focal, down / self.focal, forward - (right * x + down * y) / self.focal], 1)

    def cropped(self, left: float, top: float, scale: float) -> Projection:
        """The projection cut at (left, top), which becomes (-0.5, -0.5), the edge of pixel 0; enlarged by `scale`."""
        x, y = self.centre
        moved = ((x - left) * scale - 0.5, (y - top) * scale - 0.5)
        return Projection(self.position, self.axes, self.focal * scale, moved)


def make_camera(number: int, generator: np.random.Generator, cast: float, degradation: float) -> RoadCamera:
    """The `number`-th (1-based) camera of a data set.

    Args:
        number: decides the view, see `VIEWS`.
        generator: of this camera.
        cast: strength of colour cast, exposure and contrast differences; 1 is strong, 0 none.
        degradation: strength of blur, noise and compression; 1 is normal, 0 none.
    """

    def draw(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    view = VIEWS[(number - 1) % len(VIEWS)]
    gains = np.exp(generator.normal(0.0, 0.075 * cast, 3))
    blue, green, red = (gains / gains.mean()).tolist()
    return RoadCamera(
        azimuth=view + draw(-7, 7),
        elevation=draw(11, 24),
        distance=draw(3.2, 6.0),
        roll=draw(-2.5, 2.5),
        sun=(draw(-180, 180), draw(30, 65)),
        direct=draw(0.15, 0.75),
        exposure=float(np.exp(draw(-0.15, 0.35) * cast)),
        gains=(blue, green, red),
        gamma=float(np.exp(draw(-0.22, 0.22) * cast)),
        saturation=1.0 + cast * draw(-0.45, 0.15),
        haze=draw(0.0, 0.12) * cast,
        blur=degradation * draw(0.5, 1.5),
        noise=degradation * draw(1.0, 4.0),
        jpeg_quality=int(np.clip(95 - degradation * draw(5, 40), 30, 98)),
        long_side=(draw(0.0, 0.35), draw(0.6, 1.0)),
        road=int(generator.integers(2**31)),
        occluded=draw(0.0, 0.16),
    )


def make_passage(camera: RoadCamera, track: np.random.Generator, shot: np.random.Generator) -> Passage:
    """How a vehicle stands before the camera: some traffic goes the other way, and every shot differs a little.

    Args:
        camera: the camera.
        track: draws that all shots of this vehicle at this camera share.
        shot: draws of this image.
    """
    turned = 180.0 if track.random() < 0.2 else 0.0
    lane = track.uniform(-9.0, 9.0)
    azimuth = camera.azimuth + turned + lane + shot.uniform(-8.0, 8.0)
    elevation = min(max(camera.elevation + shot.uniform(-3.5, 3.5), 7.0), 32.0)
    sun_azimuth = math.radians(azimuth + camera.sun[0] + track.uniform(-25, 25))
    sun_height = math.radians(camera.sun[1] + track.uniform(-8, 8))
    flat = math.cos(sun_height)
    light = np.array([flat * math.cos(sun_azimuth), flat * math.sin(sun_azimuth), math.sin(sun_height)])
    return Passage(
        azimuth=float(azimuth % 360.0),
        elevation=elevation,
        distance=float(camera.distance * shot.uniform(0.85, 1.25)),
        roll=camera.roll + float(shot.uniform(-1.0, 1.0)),
        light=light,
        direct=min(max(camera.direct + track.uniform(-0.2, 0.2), 0.0), 0.9),
        brightness=math.exp(track.uniform(-0.12, 0.12) + shot.uniform(-0.05, 0.05)),
    )


def look_at(azimuth: float, elevation: float, distance: float, target_height: float, roll: float = 0.0) -> Projection:
    """A camera `distance` metres from the point `target_height` above the vehicle's origin, with focal length 1."""
    around, up, turn = math.radians(azimuth), math.radians(elevation), math.radians(roll)
    outward = np.array([math.cos(up) * math.cos(around), math.cos(up) * math.sin(around), math.sin(up)])
    right = np.array([-math.sin(around), math.cos(around), 0.0])
    down = np.array([math.sin(up) * math.cos(around), math.sin(up) * math.sin(around), -math.cos(up)])
    right, down = math.cos(turn) * right + math.sin(turn) * down, math.cos(turn) * down - math.sin(turn) * right
    position = outward * distance + [0.0, 0.0, target_height]
    return Projection(position, np.array([right, down, -outward]), 1.0, (0.0, 0.0))


def colour_transfer(camera: RoadCamera, brightness: float) -> NDArray[np.float32]:
    """(256, 3) table from linear scene values 0..255 to the camera's blue, green, red."""
    values = np.arange(256, dtype=np.float64) / 255.0
    exposed = np.clip(values[:, None] * camera.exposure * brightness * np.array(camera.gains), 0.0, 1.4)
    rolled = np.where(exposed > 0.8, 0.8 + 0.2 * np.tanh((exposed - 0.8) / 0.25), exposed)
    return np.asarray((camera.haze + (1 - camera.haze) * rolled**camera.gamma) * 255.0, dtype=np.float32)
