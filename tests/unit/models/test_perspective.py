"""Planes, homographies and warps: loops, OpenCV, golden files, the identity, and mistakes that must show."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.keypoints import PLANE_NAMES, VERI_PLANE_RATES, VERI_SUBSTITUTION_GAINS, mirror_order
from reid.models.perspective import (
    PlaneConfig,
    Planes,
    average_planes,
    find_planes,
    fold_weights,
    sampling_grid,
    solve_homographies,
    warp_planes,
)
from tests.reference import homography as reference

SHARED = Path(__file__).resolve().parents[4] / "shared"
GOLDEN = SHARED / "golden" / "warp_perspective.npz"
GALLERY = SHARED / "data" / "veri776-keypoints" / "keypoint_test.txt"
UNIT_SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
FRONT, BACK, SIDE, TOP = range(4)


def _keypoints(points: dict[int, tuple[float, float]]) -> torch.Tensor:
    keypoints = torch.zeros(1, 20, 3)
    for number, (x, y) in points.items():
        keypoints[0, number - 1] = torch.tensor([x, y, 1.0])
    return keypoints


def _front(top_left: tuple[float, float], *others: tuple[float, float]) -> torch.Tensor:
    return _keypoints(dict(zip((13, 14, 6, 5), (top_left, *others), strict=True)))


def _quadrilaterals(num: int, size: float, seed: int) -> torch.Tensor:
    """(num, 4, 2) convex clockwise quadrilaterals: jittered rectangles."""
    generator = torch.Generator().manual_seed(seed)
    jitter = 0.25 * torch.rand(num, 4, 2, generator=generator, dtype=torch.float64)
    inward = torch.where(UNIT_SQUARE == 0, 1.0, -1.0)
    return (UNIT_SQUARE + inward * jitter) * size


def _planes(corners: torch.Tensor) -> Planes:
    """One front plane per image, with `corners` (B, 4, 2) going to the unit square."""
    batch = len(corners)
    visible = torch.zeros(batch, 4, dtype=torch.bool)
    visible[:, FRONT] = True
    homographies = torch.eye(3, dtype=torch.float64).repeat(batch, 4, 1, 1)
    homographies[:, FRONT] = solve_homographies(UNIT_SQUARE.expand(batch, 4, 2), corners)[0]
    return Planes(
        corners=corners[:, None].repeat(1, 4, 1, 1),
        targets=UNIT_SQUARE.expand(batch, 4, 4, 2),
        homographies=homographies,
        visible=visible,
        rule=torch.where(visible, 0, -1),
        substituted=torch.zeros_like(visible),
    )


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (80, 48)])
def test_the_quadrilateral_of_the_whole_image_returns_the_same_map(height: int, width: int) -> None:
    corners = UNIT_SQUARE[None] * torch.tensor([width, height]) - 0.5
    maps = torch.randn(1, 3, height // 16, width // 16, dtype=torch.float64)
    warped, images, slots = warp_planes(maps, _planes(corners), height, width, height // 16, width // 16)
    torch.testing.assert_close(warped, maps)
    assert (images.tolist(), slots.tolist()) == ([0], [FRONT])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80)])
def test_warp_equals_the_loops_and_a_transposed_grid_does_not(height: int, width: int) -> None:
    corners = _quadrilaterals(3, 1.0, seed=0) * torch.tensor([width, height]) - 0.5
    maps = torch.randn(3, 2, height // 8, width // 8, dtype=torch.float64)
    planes = _planes(corners)
    actual, _, _ = warp_planes(maps, planes, height, width, 5, 7)
    for image in range(3):
        matrix = reference.homography(UNIT_SQUARE.tolist(), corners[image].tolist())
        expected = reference.warp(maps[image].numpy(), matrix, height, width, 5, 7)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(actual[image], expected, atol=1e-9)
        wrong = reference.warp(maps[image].numpy(), matrix, height, width, 5, 7, transposed=True)
        assert np.abs(actual[image].numpy() - wrong).max() > 0.1


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(2, 20), width=st.integers(2, 20), stride=st.sampled_from([1, 4, 16]), seed=st.integers(0, 10**6)
)
def test_folded_weights_equal_warp_and_average(height: int, width: int, stride: int, seed: int) -> None:
    config = PlaneConfig(grid=6)
    # Larger than the image and moved off it, so that border cells are clamped too.
    corners = _quadrilaterals(2, 1.6, seed) * torch.tensor([width, height]) * stride - 0.2 * stride * width
    maps = torch.randn(2, 5, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    planes = _planes(corners)
    warped, _, _ = warp_planes(maps, planes, height * stride, width * stride, 6, 6)
    expected = warped.mean((2, 3))
    weights = fold_weights(planes, height * stride, width * stride, height, width, config)
    actual = maps.flatten(2) @ weights.double()
    torch.testing.assert_close(actual[..., FRONT], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.sum(1)[:, FRONT], torch.ones(2))
    assert (weights[..., 1:] == 0).all()


def test_gradients_of_warp_and_fold_are_right_and_nothing_flows_through_invisible_planes() -> None:
    corners = _quadrilaterals(2, 32.0, seed=4)
    planes = _planes(corners)
    planes.visible[1] = False
    maps = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: warp_planes(x, planes, 32, 32, 3, 3)[0], (maps,))
    weights = fold_weights(planes, 32, 32, 4, 4, PlaneConfig(grid=3)).double()
    (maps.flatten(2) @ weights).sum().backward()
    assert maps.grad is not None
    assert maps.grad[0].abs().sum() == pytest.approx(2.0)  # weights sum to 1 in each of 2 channels
    assert (maps.grad[1] == 0).all()


def test_invisible_planes_weigh_nothing_whatever_their_homographies_are() -> None:
    planes = _planes(_quadrilaterals(3, 32.0, seed=5))
    planes.visible[1:] = False
    planes.homographies[1, FRONT] = torch.nan
    planes.homographies[2, FRONT] = 0.0
    maps = torch.randn(3, 2, 4, 4, requires_grad=True)
    averages = average_planes(maps, planes, 32, 32, PlaneConfig(grid=3))
    averages.square().sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    assert (maps.grad[0] != 0).any()
    assert (averages[1:] == 0).all()
    assert (maps.grad[1:] == 0).all()


def test_homographies_agree_with_opencv() -> None:
    sources = _quadrilaterals(50, 256.0, seed=1)
    targets = UNIT_SQUARE.expand(50, 4, 2) * 16
    actual, condition = solve_homographies(targets, sources)
    assert (condition < 1e6).all()
    for i in range(50):
        expected = cv2.getPerspectiveTransform(targets[i].float().numpy(), sources[i].float().numpy())
        inside = np.array([[u, v, 1.0] for u in range(17) for v in range(17)])
        mapped, wanted = inside @ actual[i].numpy().T, inside @ expected.T
        np.testing.assert_allclose(mapped[:, :2] / mapped[:, 2:], wanted[:, :2] / wanted[:, 2:], atol=5e-5)


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no {GOLDEN}")
def test_warps_agree_with_the_golden_file() -> None:
    golden = np.load(GOLDEN, allow_pickle=False)
    sources, features = torch.tensor(golden["quads_px_center"]), torch.tensor(golden["feat"]).double()
    # `center`: the corners go to the centres of the corner cells of an 8x8 target.
    centres = (torch.tensor(golden["dst_center"]) + 0.5) / 8
    homographies, _ = solve_homographies(centres.expand(64, 4, 2), sources)
    points = sampling_grid(homographies, 8, 8).flatten(1, 2)
    # OpenCV's matrices miss their own corners by up to 9e-6 px; ours by 1e-13.
    np.testing.assert_allclose(points, golden["src_px_center"], atol=1e-5)
    np.testing.assert_allclose(points[:, [0, 7, 63, 56]], sources, atol=1e-11)
    matrices, _ = solve_homographies(sources, torch.tensor(golden["dst_center"]).expand(64, 4, 2))
    corners = torch.cat((sources, torch.ones(64, 4, 1, dtype=torch.float64)), -1)
    projected, opencv = corners @ matrices.mT, corners @ torch.tensor(golden["M_cv2_center"]).mT
    actual, expected = projected[..., :2] / projected[..., 2:], opencv[..., :2] / opencv[..., 2:]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    # `edge`: the outer corners go to the outer corners, our convention.
    planes = _planes(sources)
    warped, _, _ = warp_planes(features, planes, 16, 16, 8, 8)
    points = sampling_grid(planes.homographies[:, FRONT], 8, 8)
    inside = ((points >= 0) & (points <= 15)).all(-1).numpy()  # the golden file pads with zeros, we with the border
    assert inside.mean() > 0.9
    expected = np.moveaxis(golden["grid_sample_edge"], 1, -1)[inside]
    np.testing.assert_allclose(np.moveaxis(warped.numpy(), 1, -1)[inside], expected, atol=2e-5)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), shown=st.floats(0.6, 1.0), spread=st.floats(0.0, 30.0))
def test_planes_equal_the_loops(seed: int, shown: float, spread: float) -> None:
    generator = np.random.default_rng(seed)
    keypoints = np.zeros((1, 20, 3))
    for numbers in ((13, 14, 6, 5), (15, 16, 18, 17), (14, 15, 2, 1)):  # drawn over one another: any plane may come out
        for number, corner in zip(numbers, UNIT_SQUARE.numpy(), strict=True):
            keypoints[0, number - 1, :2] = 20 + 60 * corner + generator.normal(0, spread, 2)
    keypoints[0, [2, 3, 8, 9, 18], :2] = generator.uniform(0, 100, (5, 2))
    keypoints[0, :, 2] = generator.random(20) < shown
    planes = find_planes(torch.tensor(keypoints), 100, 120, PlaneConfig())
    for slot, name in enumerate(PLANE_NAMES):
        expected = reference.find_plane(keypoints[0], name, 100, 120, 0.004, 0.05)
        assert bool(planes.visible[0, slot]) == (expected is not None)
        if expected is not None:
            corners, targets = expected
            matrix = reference.homography(targets, corners)
            for u, v in ((0.1, 0.2), (0.9, 0.3), (0.5, 0.8)):
                mapped = planes.homographies[0, slot].numpy() @ np.array([u, v, 1])
                np.testing.assert_allclose(mapped[:2] / mapped[2], reference.apply(matrix, u, v), atol=1e-4)


def test_left_and_right_side_put_the_vehicles_front_at_the_same_end() -> None:
    # A van seen from its left, front at the image's left: roof corners 14, 15, wheels 1, 2.
    left = _keypoints({14: (20, 30), 15: (90, 28), 2: (88, 70), 1: (22, 74)})
    # The mirrored picture with the names of the other side: seen from the right, front at the image's right.
    right = left[:, list(mirror_order())].clone()
    right[..., 0] = torch.where(right[..., 2] > 0, 127 - right[..., 0], 0)
    config = PlaneConfig()
    planes_left, planes_right = find_planes(left, 128, 128, config), find_planes(right, 128, 128, config)
    assert planes_left.visible[0].tolist() == planes_right.visible[0].tolist() == [False, False, True, False]
    assert (planes_left.rule[0, SIDE], planes_right.rule[0, SIDE]) == (2, 3)
    at_left, at_right = (sampling_grid(planes.homographies[0, SIDE], 4, 4) for planes in (planes_left, planes_right))
    assert at_left[0, 0, 0] < 64 < at_right[0, 0, 0]
    torch.testing.assert_close(at_right[..., 0], 127 - at_left[..., 0])
    torch.testing.assert_close(at_right[..., 1], at_left[..., 1])
    picture = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    warped_left, _, _ = warp_planes(picture, planes_left, 128, 128, 8, 8)
    warped_right, _, _ = warp_planes(picture.flip(3), planes_right, 128, 128, 8, 8)
    torch.testing.assert_close(warped_left, warped_right)


def test_of_two_complete_sides_the_larger_is_taken() -> None:
    small_left = {14: (10.0, 10.0), 15: (30.0, 10.0), 2: (30.0, 30.0), 1: (10.0, 30.0)}
    large_right = {16: (40.0, 40.0), 13: (90.0, 40.0), 3: (90.0, 90.0), 4: (40.0, 90.0)}
    planes = find_planes(_keypoints(small_left | large_right), 100, 100, PlaneConfig())
    assert planes.rule[0, SIDE] == 3
    turned = {n: (100 - x, y) for n, (x, y) in large_right.items()}  # back-facing: the smaller one remains
    assert find_planes(_keypoints(small_left | turned), 100, 100, PlaneConfig()).rule[0, SIDE] == 2


@pytest.mark.parametrize(
    "corners",
    [
        pytest.param([(80, 20), (20, 20), (20, 80), (80, 80)], id="back-facing"),
        pytest.param([(20, 20), (80, 80), (80, 20), (20, 80)], id="self-crossing"),
        pytest.param([(20, 20), (80, 20), (40, 40), (20, 80)], id="not convex"),
        pytest.param([(20, 20), (80, 20), (80, 80), (50, 50.5)], id="nearly straight"),
        pytest.param([(20, 20), (80, 20), (80, 20), (20, 80)], id="two corners in one place"),
        pytest.param([(20, 20), (20, 20), (20, 20), (20, 20)], id="one point"),
        pytest.param([(20, 20), (25, 20), (25, 25), (20, 25)], id="too small"),
        pytest.param([(20, 20), (80, 20), (float("nan"), 80), (20, 80)], id="not a number"),
        pytest.param([(20, 20), (80, 20), (80, float("inf")), (20, 80)], id="infinite"),
    ],
)
def test_degenerate_planes_are_refused(corners: list[tuple[float, float]]) -> None:
    assert find_planes(_front((20, 20), (80, 20), (80, 80), (20, 80)), 100, 100, PlaneConfig()).visible[0, FRONT]
    planes = find_planes(_front(*corners), 100, 100, PlaneConfig())
    assert not planes.visible.any()
    assert planes.rule.tolist() == [[-1] * 4]
    assert fold_weights(planes, 100, 100, 5, 5, PlaneConfig()).abs().sum() == 0


def test_limits_are_the_configs() -> None:
    small = _front((20, 20), (25, 20), (25, 25), (20, 25))
    assert find_planes(small, 100, 100, PlaneConfig(min_area=0.002)).visible[0, FRONT]
    assert not find_planes(small, 100, 100, PlaneConfig(min_area=0.002, planes=("back", "top"))).visible.any()
    assert not find_planes(small, 100, 100, PlaneConfig(min_area=0.0, max_condition=2.0)).visible.any()
    flat = _front((20, 20), (80, 20), (80, 80), (49, 50.5))
    assert find_planes(flat, 100, 100, PlaneConfig(min_sine=0.001)).visible[0, FRONT]


@pytest.mark.parametrize("missing", [5, 6])
def test_one_missing_bottom_corner_is_substituted_by_the_plate_at_bottom_middle(missing: int) -> None:
    points = {13: (20.0, 20.0), 14: (80.0, 20.0), 6: (80.0, 80.0), 5: (20.0, 80.0), 10: (50.0, 80.0)}
    del points[missing]
    planes = find_planes(_keypoints(points), 100, 100, PlaneConfig())
    assert planes.visible[0, FRONT]
    assert planes.substituted[0, FRONT]
    corner = (1.0, 1.0) if missing == 6 else (0.0, 1.0)
    mapped = planes.homographies[0, FRONT] @ torch.tensor([*corner, 1.0], dtype=torch.float64)
    expected = (80.0, 80.0) if missing == 6 else (20.0, 80.0)
    assert (mapped[:2] / mapped[2]).tolist() == pytest.approx(expected)
    assert not find_planes(_keypoints(points), 100, 100, PlaneConfig(substitution=False)).visible.any()


@pytest.mark.parametrize("missing", [(13,), (5, 6), (14, 5)])
def test_nothing_else_is_substituted(missing: tuple[int, ...]) -> None:
    points = {13: (20.0, 20.0), 14: (80.0, 20.0), 6: (80.0, 80.0), 5: (20.0, 80.0), 10: (50.0, 80.0)}
    for number in missing:
        del points[number]
    assert not find_planes(_keypoints(points), 100, 100, PlaneConfig()).visible.any()


def test_a_substituted_plane_whose_missing_corner_lies_beyond_the_horizon_is_refused() -> None:
    # Convex and clockwise, but the bottom edge reaches the horizon between the plate and the missing corner.
    corners = [(18.0, 54.0), (30.0, 18.0), (70.0, 62.0), (14.0, 82.0)]
    assert reference.area(corners) > 40
    assert reference.least_sine(corners) > 0.1
    matrix = reference.homography([(0, 0), (1, 0), (0.5, 1), (0, 1)], corners)
    assert (matrix @ np.array([1, 1, 1]))[2] < 0 < (matrix @ np.array([0.5, 1, 1]))[2]
    planes = find_planes(_keypoints(dict(zip((13, 14, 10, 5), corners, strict=True))), 100, 100, PlaneConfig())
    assert not planes.visible.any()


@pytest.mark.skipif(not GALLERY.is_file(), reason=f"no {GALLERY}")
def test_rates_on_the_veri_gallery_are_the_published_ones() -> None:
    rows = {}
    for line in GALLERY.read_text().splitlines():
        fields = line.split()
        rows[fields[0].rsplit("/", 1)[-1]] = [float(value) for value in fields[1:41]]
    points = torch.tensor(list(rows.values()), dtype=torch.float64).view(-1, 20, 2)
    keypoints = torch.cat((points, (points[..., :1] >= 0).double()), dim=-1)
    no_limits = {"min_area": 0.0, "min_sine": 0.0, "max_condition": 1e300}
    plain = find_planes(keypoints, 256, 256, PlaneConfig(**no_limits, substitution=False)).visible.double().mean(0)
    expected = [VERI_PLANE_RATES[name] for name in PLANE_NAMES]
    assert plain.tolist() == pytest.approx(expected, abs=0.0015)
    substituted = find_planes(keypoints, 256, 256, PlaneConfig(**no_limits)).visible.double().mean(0) - plain
    gains = [VERI_SUBSTITUTION_GAINS.get(name, 0.0) for name in PLANE_NAMES]
    assert substituted.tolist() == pytest.approx(gains, abs=0.0015)
    limited = find_planes(keypoints, 256, 256, PlaneConfig()).visible
    assert not (limited[:, FRONT] & limited[:, BACK]).any()
    assert limited.double().mean(0).tolist() == pytest.approx([0.468, 0.485, 0.656, 0.826], abs=0.002)


def test_the_config_refuses_rules_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="each once"):
        PlaneConfig(planes=("front", "front"))
    for rule, message in (
        ({"plane": "hood", "corners": [1, 2, 3, 4], "targets": ["TL", "TR", "BR", "BL"]}, "'hood'"),
        ({"plane": "top", "corners": [1, 2, 3, 21], "targets": ["TL", "TR", "BR", "BL"]}, "different numbers"),
        ({"plane": "top", "corners": [1, 2, 3, 4], "targets": ["TL", "TR", "BR", "BR"]}, "each of"),
    ):
        with pytest.raises(ValueError, match=message):
            PlaneConfig.model_validate({"rules": [rule]})
    with pytest.raises(ValueError, match=r"\(2, 19, 3\)"):
        find_planes(torch.zeros(2, 19, 3), 10, 10, PlaneConfig())
