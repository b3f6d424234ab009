"""Bodies, keypoints and planes of synthetic vehicles: handedness, mirror symmetry, true visibility, painter's order."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from reid.data.synthetic_bodies import BodyKind, BodyShape, build_mesh, make_shape
from reid.data.synthetic_cameras import Passage, look_at
from reid.data.synthetic_images import SyntheticConfig, build_vehicle, draw_vehicle_image
from reid.data.synthetic_keypoints import (
    GRAZING_COSINE,
    NUDGE_METRES,
    orientation_code,
    place_keypoints,
    seen_from,
)
from reid.data.synthetic_marks import draw_fittings
from reid.data.synthetic_mesh import Chart, Mesh
from reid.data.synthetic_paint import paint_vehicle
from reid.data.synthetic_render import render_vehicle
from reid.data.synthetic_styles import KIND_SHARES, make_style
from reid.data.synthetic_surfaces import Canvas, join_canvases
from reid.keypoints import MIRROR_ORIENTATION, MIRROR_PAIRS, VERI_PLANE_RATES, mirror_order
from tests.reference import visibility

KINDS: tuple[BodyKind, ...] = tuple(KIND_SHARES)
PLANES = {
    "front": (13, 14, 6, 5),
    "back": (15, 16, 18, 17),
    "left": (14, 15, 2, 1),
    "right": (16, 13, 3, 4),
    "top": (16, 15, 14, 13),
}


def shape_of(kind: BodyKind, seed: int = 5) -> BodyShape:
    return make_shape(kind, np.random.default_rng(seed))


def passage(azimuth: float) -> Passage:
    return Passage(azimuth, 15.0, 4.0, 0.0, np.array([0.3, 0.4, 0.866]), 0.5, 1.0)


def distance_to_mesh(mesh: Mesh, point: NDArray[np.float64]) -> float:
    """By brute force: a dense barycentric grid on every triangle."""
    steps = [(a, b, 12 - a - b) for a in range(13) for b in range(13 - a)]
    weights = np.array(steps) / 12.0
    surface = np.einsum("wk,tkc->twc", weights, mesh.vertices[mesh.triangles]).reshape(-1, 3)
    return float(np.linalg.norm(surface - point, axis=1).min())


@pytest.mark.parametrize("kind", KINDS)
def test_keypoints_lie_on_the_surface_and_mirrors_inside_their_box(kind: BodyKind) -> None:
    shape = shape_of(kind, 1)
    mesh, keypoints = build_mesh(shape), place_keypoints(shape)
    for number in range(1, 21):
        distance = distance_to_mesh(mesh, keypoints.positions[number - 1])
        assert distance < (0.15 if number in (11, 12) else 2 * NUDGE_METRES), (number, distance)


@pytest.mark.parametrize("kind", KINDS)
def test_left_and_right_points_are_mirror_images(kind: BodyKind) -> None:
    positions = place_keypoints(shape_of(kind)).positions
    for left, right in MIRROR_PAIRS:
        np.testing.assert_allclose(positions[left - 1], positions[right - 1] * [1, -1, 1], atol=1e-12)
        assert abs(positions[left - 1][1]) > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_a_car_seen_from_its_left_shows_its_left_wheels_with_the_front_at_the_left(kind: BodyKind) -> None:
    shape = shape_of(kind)
    mesh, keypoints = build_mesh(shape), place_keypoints(shape)
    view = look_at(90.0, 12.0, 5 * shape.length, 0.8)
    seen = seen_from(keypoints, mesh, view.position)
    columns = view.pixels(keypoints.positions)[:, 0]
    assert [seen[number - 1] for number in (1, 2, 3, 4)] == [True, True, False, False]
    assert columns[0] < columns[1]
    assert columns[7] < columns[16]  # left headlight, left rear lamp
    assert orientation_code(90.0) == 2


def test_a_car_seen_from_ahead_shows_its_left_at_the_right_of_the_picture() -> None:
    shape = shape_of("sedan")
    mesh, keypoints = build_mesh(shape), place_keypoints(shape)
    view = look_at(0.0, 15.0, 25.0, 0.8)
    seen = seen_from(keypoints, mesh, view.position)
    points = view.pixels(keypoints.positions)
    assert seen[[4, 5, 6, 7, 8, 9, 12, 13]].all()
    assert not seen[[16, 17, 18, 19, 0, 1, 2, 3]].any()
    assert points[13, 0] > points[12, 0]
    assert points[12, 1] < points[9, 1]  # the roof is above the plate


@pytest.mark.parametrize("kind", KINDS)
def test_the_view_from_the_other_side_is_the_mirrored_view(kind: BodyKind) -> None:
    shape = shape_of(kind)
    mesh, keypoints = build_mesh(shape), place_keypoints(shape)
    order = list(mirror_order())
    for azimuth in (4.0, 33.0, 95.0, 140.0, 171.0):
        one, other = (look_at(side * azimuth, 14.0, 20.0, 0.8) for side in (1, -1))
        expected = one.pixels(keypoints.positions) * [-1, 1]
        np.testing.assert_allclose(other.pixels(keypoints.positions)[order], expected, atol=1e-12)
        assert (seen_from(keypoints, mesh, other.position)[order] == seen_from(keypoints, mesh, one.position)).all()
        assert orientation_code(-azimuth) == MIRROR_ORIENTATION[orientation_code(azimuth)]


@pytest.mark.parametrize("kind", KINDS)
def test_visibility_agrees_with_a_loop_over_projected_triangles(kind: BodyKind) -> None:
    shape = shape_of(kind, 9)
    generator = np.random.default_rng(4)
    style = make_style(generator, kind)
    fittings = draw_fittings(style, generator, 1.0)
    mesh = build_mesh(shape, tuple((*fitting.low, *fitting.high) for fitting in fittings))
    keypoints = place_keypoints(shape)
    target = (0.0, 0.0, 0.7)
    without_hiding = different = 0
    for azimuth, elevation in ((5.0, 10.0), (50.0, 20.0), (150.0, 14.0), (265.0, 9.0)):
        position = look_at(azimuth, elevation, 22.0, 0.7).position
        axes = visibility.camera_axes(position.tolist(), target)
        expected = []
        for number in range(20):
            own = keypoints.own_part[number]
            triangles = [
                [visibility.project(mesh.vertices[corner].tolist(), position.tolist(), axes) for corner in triangle]
                for triangle, part in zip(mesh.triangles, mesh.parts, strict=True)
                if part != own
            ]
            normals = [normal.tolist() for normal in keypoints.faces[number] if normal.any()]
            point, lifted = keypoints.positions[number].tolist(), keypoints.lifted()[number].tolist()
            rest = (normals, triangles, position.tolist(), axes, GRAZING_COSINE)
            expected.append(visibility.is_seen(point, lifted, *rest))
            without_hiding += visibility.is_seen(point, lifted, normals, [], *rest[2:]) and not expected[-1]
        actual = seen_from(keypoints, mesh, position).tolist()
        different += sum(a != b for a, b in zip(actual, expected, strict=True))
        assert 4 <= sum(expected) <= 18
    assert different == 0
    assert without_hiding > 0  # the faces' directions alone would not do


@pytest.mark.parametrize("kind", KINDS)
def test_the_painter_shows_the_nearest_part_at_each_pixel(kind: BodyKind) -> None:
    style = make_style(np.random.default_rng(8), kind)
    mesh = build_mesh(style.shape)
    atlas = join_canvases(paint_vehicle(style), style.shape)
    wrong = total = 0
    for azimuth in (20.0, 75.0, 160.0, 220.0):
        view = look_at(azimuth, 15.0, 4.5 * style.shape.length, 0.8)
        scale = 900.0 if style.shape.length < 7 else 700.0
        projection = view.cropped(-0.5 * 200 / scale, -0.5 * 160 / scale, scale)
        drawn = render_vehicle(style.shape, mesh, atlas, projection, passage(azimuth), (200, 160)).triangle
        axes = visibility.camera_axes(view.position.tolist(), (0.0, 0.0, 0.8))
        triangles = [
            [visibility.project(mesh.vertices[corner].tolist(), view.position.tolist(), axes) for corner in triangle]
            for triangle in mesh.triangles
        ]
        inner = cv2.erode((drawn >= 0).astype(np.uint8), np.ones((3, 3), np.uint8))  # fills draw their outline too
        rows, columns = np.nonzero(inner)
        for pick in np.random.default_rng(1).choice(len(rows), 60, replace=False):
            x = (columns[pick] - projection.centre[0]) / projection.focal
            y = (rows[pick] - projection.centre[1]) / projection.focal
            expected, nearest = visibility.nearest_triangle(triangles, x, y)
            shown = visibility.depth_at(triangles[drawn[rows[pick], columns[pick]]], x, y)
            total += 1
            wrong += expected < 0 or (shown is not None and shown > nearest + 0.25)
    assert total == 240
    assert wrong / total < 0.01


def signed_area(points: NDArray[np.float64]) -> float:
    x, y = points.T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def is_convex(points: NDArray[np.float64]) -> bool:
    edges = np.roll(points, -1, 0) - points
    following = np.roll(edges, -1, 0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    return bool((turns > 0).all() or (turns < 0).all())


def test_visible_planes_are_convex_with_the_winding_of_the_table_and_about_as_frequent_as_in_veri() -> None:
    config = SyntheticConfig(seed=3, num_train_identities=60)
    rates = dict.fromkeys(PLANES, 0)
    convex = total = images = 0
    for identity in range(1, 61, 4):
        for camera in range(1, 9):
            drawn = draw_vehicle_image(config, identity, camera, 0)
            images += 1
            shown = []
            for plane, numbers in PLANES.items():
                corners = drawn.keypoints[np.array(numbers) - 1]
                if (corners[:, 2] > 0).all():
                    points = corners[:, :2].astype(np.float64)
                    rates[plane] += 1
                    shown.append(plane)
                    total += 1
                    assert signed_area(points) > 0, (identity, camera, plane)
                    convex += is_convex(points)
            assert not {"front", "back"} <= set(shown)
            assert not {"left", "right"} <= set(shown)
    assert convex / total > 0.97
    side = (rates["left"] + rates["right"]) / images
    for plane, rate in (("front", rates["front"] / images), ("back", rates["back"] / images), ("side", side)):
        assert abs(rate - VERI_PLANE_RATES[plane]) < 0.17, (plane, rate)
    assert abs(rates["top"] / images - VERI_PLANE_RATES["top"]) < 0.17


def test_lettering_is_not_mirrored_on_any_side() -> None:
    style = make_style(np.random.default_rng(2), "van")
    canvases = paint_vehicle(style)
    mesh = build_mesh(style.shape)
    half, wide = style.shape.half, style.shape.width / 2
    for chart, azimuth, (begin, end) in (
        (Chart.LEFT, 90.0, ((half, wide, 1.0), (-half, wide, 1.0))),
        (Chart.RIGHT, 270.0, ((-half, -wide, 1.0), (half, -wide, 1.0))),
        (Chart.FRONT, 0.0, ((half, -wide, 1.0), (half, wide, 1.0))),
        (Chart.REAR, 180.0, ((-half, wide, 1.0), (-half, -wide, 1.0))),
    ):
        lookup = join_canvases(canvases, style.shape).lookup[chart]
        columns = [float(lookup[0] @ [*point, 1.0]) for point in (begin, end)]
        image = look_at(azimuth, 10.0, 30.0, 0.8).pixels(np.array([begin, end]))[:, 0]
        assert columns[0] < columns[1], chart
        assert image[0] < image[1], chart
    assert set(np.unique(mesh.charts)) == {int(chart) for chart in Chart}


def test_a_sticker_lands_where_it_is_pasted() -> None:
    canvas = Canvas(Chart.LEFT, np.zeros((100, 200, 4), np.uint8), 50.0, (2.0, 2.0))
    sticker = np.full((10, 20, 4), 255, np.uint8)
    canvas.paste(sticker, (1.0, 1.0), 0.4)
    rows, columns = np.nonzero(canvas.picture[..., 0] > 128)
    assert abs(columns.mean() - 50.0) < 1.0
    assert abs(rows.mean() - 50.0) < 1.0
    assert 18 <= np.ptp(columns) + 1 <= 22


def test_near_duplicates_share_their_body_exactly() -> None:
    config = SyntheticConfig(unique_share=0.0, group_size=3)
    first, second, other = (build_vehicle(config, identity) for identity in (1, 2, 4))
    assert first.style == second.style
    assert first.style != other.style
    np.testing.assert_array_equal(first.keypoints.positions, second.keypoints.positions)
    assert (first.atlas.levels[0] != second.atlas.levels[0]).any()
