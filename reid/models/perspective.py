"""Planes of a vehicle from its keypoints, and the perspective transformation of feature maps (METHOD 1.1 and 1.2).

Source: PPT, sections 3.1 and 3.2, Eq. 1. Ours differs: both sides share one slot with the front at the same end, a
plane also needs the right winding, a least area and a well-conditioned system, and training uses weights over the map's
cells (`fold_weights`) instead of warped maps; the explicit warp (`warp_planes`) gives the same numbers and serves
pictures. What training uses has the same shapes for any planes and reads nothing back to the host, so an accelerator
is never waited for; `warp_planes` has neither property.

Convention:
    Image points are (x, y) in pixels with pixel centres at integers, so an image covers [-0.5, width - 0.5]. A feature
    map of stride s has its cell centres at image x = (i + 0.5) s - 0.5, so image x lies at feature column (x + 0.5)/s -
    0.5. The rectified target is the unit square, (0, 0) top-left, (1, 1) bottom-right; cell (row, column) of a grid of
    rows x columns has its centre at u = (column + 0.5)/columns, v = (row + 0.5)/rows. A homography maps target (u, v,
    1) to image (x, y, 1) up to scale: the direction in which features are fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from reid.contracts import Settings
from reid.device_constants import constant
from reid.keypoints import NUM_KEYPOINTS, PLANE_NAMES, PLANE_RULES, PlaneRule

PlaneName = Literal["front", "back", "side", "top"]

_TARGETS: Final = {"TL": (0.0, 0.0), "TR": (1.0, 0.0), "BR": (1.0, 1.0), "BL": (0.0, 1.0)}
_BOTTOM_MIDDLE: Final = (0.5, 1.0)
_UNIT_SQUARE: Final = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


class PlaneConfig(Settings):
    """Which planes the local branch uses and when one counts as visible (METHOD 1.1)."""

    planes: tuple[PlaneName, ...] = ("front", "back", "side", "top")
    """The planes that are on; the others are never visible (Table 5 of the paper adds them one by one)."""
    grid: int = Field(default=16, ge=1)
    """Rows and columns of the rectified target over which features are averaged."""
    min_area: float = Field(default=0.004, ge=0, lt=1)
    """Least area of a plane as a share of the image."""
    min_sine: float = Field(default=0.05, ge=0, lt=1)
    """Least sine of the angle at each corner: below it the corner is nearly straight."""
    max_condition: float = Field(default=1e4, gt=1)
    """Largest condition number (1-norm) of the 8x8 system, with the plane's own bounding box as the unit of length.
    (The
    planes of the VeRi-776 annotation that pass the other limits reach 408, half of them stay below 30.)"""
    substitution: bool = True
    """Whether a rule's substitute may stand in for one missing bottom corner."""
    rules: tuple[PlaneRule, ...] = PLANE_RULES
    """The plane table. Rules of the same plane are alternatives; the larger visible one is taken."""

    @field_validator("planes")
    @classmethod
    def _some_planes_once_each(cls, planes: tuple[PlaneName, ...]) -> tuple[PlaneName, ...]:
        if not planes or len(set(planes)) != len(planes):
            raise ValueError(f"expected one or more of {PLANE_NAMES}, each once, got {planes}; no plane: planes=null")
        return planes

    @field_validator("rules")
    @classmethod
    def _rules_make_sense(cls, rules: tuple[PlaneRule, ...]) -> tuple[PlaneRule, ...]:
        if not rules:
            raise ValueError("expected at least one rule, got none")
        for rule in rules:
            numbers = (*rule.corners, *(() if rule.substitute is None else (rule.substitute,)))
            if rule.plane not in PLANE_NAMES:
                raise ValueError(f"plane {rule.plane!r} of {rule}: expected one of {PLANE_NAMES}")
            if not all(1 <= number <= NUM_KEYPOINTS for number in numbers) or len(set(numbers)) != len(numbers):
                raise ValueError(f"keypoints {numbers} of {rule}: expected different numbers 1..{NUM_KEYPOINTS}")
            if sorted(rule.targets) != sorted(_TARGETS):
                raise ValueError(f"targets {rule.targets} of {rule}: expected each of {tuple(_TARGETS)} once")
        return rules


@dataclass(frozen=True, kw_only=True, slots=True)
class Planes:
    """The planes of a batch of images; slot j is `PLANE_NAMES[j]`. The other fields mean nothing where invisible."""

    corners: Tensor
    """(B, 4, 4, 2) float64: per plane four image points, in the order of the rule that found it."""
    targets: Tensor
    """(B, 4, 4, 2) float64: the point of the unit square that each corner goes to."""
    homographies: Tensor
    """(B, 4, 3, 3) float64: unit square -> image."""
    visible: Tensor
    """(B, 4) bool."""
    rule: Tensor
    """(B, 4) int64: number in `PlaneConfig.rules` of the rule that found the plane (with the default table 2 and 3 tell
    the
    left side from the right), -1 where invisible."""
    substituted: Tensor
    """(B, 4) bool: a substitute stands in for a bottom corner."""


def find_planes(keypoints: Tensor, height: int, width: int, config: PlaneConfig) -> Planes:
    """Find the planes that keypoints show (METHOD 1.1).

    Source: PPT section 3.1, where convexity is the only check. Ours also asks for the winding of a face that looks at
    the camera, a least area, no nearly straight corner, a well-conditioned system and, because a substituted corner is
    extrapolated, that the whole target lies in front of the horizon. What fails is invisible, never an identity warp.

    Args:
        keypoints: (B, 20, 3) x, y in pixels and visibility (> 0 is visible); points that are not finite are invisible.
        height: Of the images the keypoints belong to, pixels.
        width: Likewise.
        config: Plane table and limits.

    Returns:
        The planes of each image, on the device of `keypoints`; no gradient.

    Raises:
        ValueError: When the shape of `keypoints` is another one.
    """
    if keypoints.ndim != 3 or keypoints.shape[1:] != (NUM_KEYPOINTS, 3):
        raise ValueError(f"keypoints: expected shape (B, {NUM_KEYPOINTS}, 3), got {tuple(keypoints.shape)}")
    keypoints = keypoints.detach().double()
    points = keypoints[..., :2]  # (B, 20, 2)
    shown = (keypoints[..., 2] > 0) & points.isfinite().all(-1)  # (B, 20)

    corners, targets, complete, substituted = _corners_of_rules(points, shown, config)  # (B, R, ...)
    areas = 0.5 * _cross(corners, corners.roll(-1, dims=2)).sum(-1)  # (B, R), positive: faces the camera
    well_formed = complete & (areas >= config.min_area * height * width) & (_least_sine(corners) >= config.min_sine)
    areas = torch.where(well_formed & (areas > 0), areas, 0.0)

    rules_of_planes = tuple(tuple(rule.plane == name for rule in config.rules) for name in PLANE_NAMES)
    belongs = constant(rules_of_planes, torch.bool, keypoints.device)  # (4, R)
    areas, rule = torch.where(belongs, areas[:, None], -1.0).max(dim=-1)  # (B, 4)
    switched_on = constant(tuple(name in config.planes for name in PLANE_NAMES), torch.bool, keypoints.device)
    found = (areas > 0) & switched_on

    images = torch.arange(len(keypoints), device=keypoints.device)[:, None]
    corners, targets = corners[images, rule], targets[images, rule]  # (B, 4, 4, 2)
    # All B x 4 systems are solved, however many planes there are; where there is none, that of the identity.
    square = constant(_UNIT_SQUARE, torch.float64, keypoints.device)
    is_there = found[..., None, None]
    homographies, condition = solve_homographies(
        torch.where(is_there, targets, square).flatten(0, 1), torch.where(is_there, corners, square).flatten(0, 1)
    )
    horizon_free = (_scale_at_target_corners(homographies) > 0).all(-1)
    visible = found & ((condition <= config.max_condition) & horizon_free).view_as(found)
    return Planes(
        corners=corners,
        targets=targets,
        homographies=homographies.view(*found.shape, 3, 3),
        visible=visible,
        rule=torch.where(visible, rule, -1),
        substituted=substituted[images, rule] & visible,
    )


def solve_homographies(targets: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for the homographies that map four target points each to four source points, in one batched 8x8 system.

    Source: PPT Eq. 1 with the bottom-right element 1, inverted: we solve for target -> source directly. Sources are
    moved and scaled to their bounding box first, so that the condition number measures the shape and not the size of
    the plane.

    Args:
        targets: (N, 4, 2) float64.
        sources: (N, 4, 2) float64.

    Returns:
        (N, 3, 3) homographies target -> source, and (N,) condition numbers (1-norm) of the systems; infinite or not a
        number where a system is singular (its homography is then not finite either, or meaningless).
    """
    least = sources.amin(dim=1)  # (N, 2)
    scale = (sources.amax(dim=1) - least).amax(dim=-1).clamp(min=torch.finfo(sources.dtype).tiny)  # (N,)
    local = (sources - least[:, None]) / scale[:, None, None]

    ones, zeros = torch.ones_like(targets[..., :1]), torch.zeros_like(targets)
    lifted = torch.cat((targets, ones), dim=-1)  # (N, 4, 3): u v 1
    padding = torch.cat((zeros, zeros[..., :1]), dim=-1)
    x_rows = torch.cat((lifted, padding, -targets * local[..., :1]), dim=-1)  # (N, 4, 8)
    y_rows = torch.cat((padding, lifted, -targets * local[..., 1:]), dim=-1)
    system = torch.cat((x_rows, y_rows), dim=1)  # (N, 8, 8)
    right = torch.cat((local[..., 0], local[..., 1]), dim=1)[..., None]  # (N, 8, 1)

    # One factorisation gives the solution and, from the other eight columns, the inverse for the condition number.
    identity = torch.eye(8, dtype=system.dtype, device=system.device).expand(len(system), 8, 8)
    solution, _ = torch.linalg.solve_ex(system, torch.cat((right, identity), dim=-1))
    condition = _one_norm(system) * _one_norm(solution[..., 1:])
    flat = torch.cat((solution[..., 0], torch.ones_like(scale)[:, None]), dim=-1)
    homographies = flat.view(-1, 3, 3)
    offset = torch.cat((least, torch.zeros_like(scale)[:, None]), dim=-1)[..., None]  # (N, 3, 1)
    scales = torch.stack((scale, scale, torch.ones_like(scale)), dim=-1)[..., None]
    return homographies * scales + offset * homographies[:, 2:], condition


def sampling_grid(homographies: Tensor, rows: int, columns: int) -> Tensor:
    """Image points under the cell centres of the rectified target.

    Args:
        homographies: (..., 3, 3) unit square -> image.
        rows: Of the target grid.
        columns: Of the target grid.

    Returns:
        (..., rows, columns, 2) x, y in image pixels.
    """
    dtype, device = homographies.dtype, homographies.device
    u = (torch.arange(columns, dtype=dtype, device=device) + 0.5) / columns
    v = (torch.arange(rows, dtype=dtype, device=device) + 0.5) / rows
    grid = torch.stack((u.expand(rows, columns), v[:, None].expand(rows, columns)), dim=-1)  # (rows, columns, 2)
    return _project(homographies, grid.flatten(0, 1)).view(*homographies.shape[:-2], rows, columns, 2)


def warp_planes(
    maps: Tensor, planes: Planes, height: int, width: int, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Warp each visible plane of each feature map to the rectified target: the explicit form, for pictures and tests.

    Args:
        maps: (B, C, h, w) feature maps.
        planes: Of the same images.
        height: Of the images in pixels.
        width: Likewise.
        rows: Of the target grid.
        columns: Of the target grid.

    Returns:
        (N, C, rows, columns) warped maps of the N visible planes, and for each its image and its plane, (N,) int64.
    """
    images, slots = planes.visible.nonzero(as_tuple=True)
    points = sampling_grid(planes.homographies[images, slots], rows, columns)  # (N, rows, columns, 2)
    size = torch.tensor((width, height), dtype=points.dtype, device=points.device)
    # align_corners=False has -1 and 1 at the outer edges of the map, which are the outer edges of the image.
    grid = (2 * (points + 0.5) / size - 1).to(maps.dtype)
    warped = F.grid_sample(maps[images], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return warped, images, slots


def fold_weights(
    planes: Planes, height: int, width: int, map_height: int, map_width: int, config: PlaneConfig
) -> Tensor:
    """Weights of the map's cells with which `maps.flatten(2) @ weights` equals warping each plane and averaging it.

    Warp and average are linear in the map, so each plane needs one weight per cell: the sum of the bilinear
    coefficients that its target cells give it. Those factor into a horizontal and a vertical hat function, so the sum
    over target cells is one small matrix product per plane (no scatter, the same result on every run). Points outside
    are clamped to the border cells, as `padding_mode="border"` does.

    Args:
        planes: Of B images.
        height: Of the images in pixels.
        width: Likewise.
        map_height: Rows of the feature map.
        map_width: Columns of the feature map.
        config: For the target grid.

    Returns:
        (B, map_height * map_width, 4) float32, cells in row-major order; each visible plane's weights sum to 1, an
        invisible plane's are 0. No gradient.
    """
    visible = planes.visible[..., None, None]
    # Homographies of invisible planes may be anything, even not a number: fold the identity in their place.
    identity = torch.eye(3, dtype=planes.homographies.dtype, device=planes.homographies.device)
    homographies = torch.where(visible, planes.homographies, identity)
    points = sampling_grid(homographies, config.grid, config.grid).flatten(2, 3)  # (B, 4, cells, 2)
    across = _hat_weights(points[..., 0], width, map_width)  # (B, 4, cells, map_width)
    down = _hat_weights(points[..., 1], height, map_height)
    folded = down.mT @ across / config.grid**2  # (B, 4, map_height, map_width)
    return torch.where(visible, folded, 0.0).flatten(2).mT


def average_planes(maps: Tensor, planes: Planes, height: int, width: int, config: PlaneConfig) -> Tensor:
    """Average of each warped plane, through folded weights.

    Args:
        maps: (B, C, h, w) feature maps.
        planes: Of the same images.
        height: Of the images in pixels.
        width: Likewise.
        config: For the target grid.

    Returns:
        (B, 4, C) in the dtype of `maps`, 0 where a plane is invisible.
    """
    weights = fold_weights(planes, height, width, maps.shape[2], maps.shape[3], config).to(maps.dtype)
    # (B, 4, cells) @ (B, cells, C): with channels_last maps neither operand nor gradient is copied.
    return torch.bmm(weights.mT, maps.flatten(2).mT)


def _hat_weights(positions: Tensor, image_size: int, map_size: int) -> Tensor:
    """Linear interpolation coefficients (..., map_size) float32 at image positions (...) along one axis."""
    stride = image_size / map_size
    cells = ((positions + 0.5) / stride - 0.5).clamp(0, map_size - 1)
    centres = torch.arange(map_size, dtype=cells.dtype, device=cells.device)
    return (1 - (cells[..., None] - centres).abs()).clamp(min=0).float()


def _corners_of_rules(points: Tensor, shown: Tensor, config: PlaneConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Corners and targets (B, R, 4, 2) of each rule, whether all four are there, whether one is substituted (B, R)."""
    device = points.device
    rules = config.rules
    numbers = constant(tuple(rule.corners for rule in rules), torch.int64, device) - 1  # (R, 4)
    places = tuple(tuple(_TARGETS[name] for name in rule.targets) for rule in rules)
    targets = constant(places, torch.float64, device)  # (R, 4, 2)
    bottom = targets[..., 1] == 1  # (R, 4)
    stand_in = constant(tuple(rule.substitute or 0 for rule in rules), torch.int64, device) - 1  # (R,), -1: none
    may_substitute = (stand_in >= 0) & config.substitution

    corners, missing = points[:, numbers], ~shown[:, numbers]  # (B, R, 4, 2), (B, R, 4)
    substituted = (missing.sum(-1) == 1) & (missing & bottom).any(-1) & may_substitute & shown[:, stand_in.clamp(min=0)]
    replace = (missing & substituted[..., None])[..., None]  # (B, R, 4, 1)
    corners = torch.where(replace, points[:, stand_in.clamp(min=0), None], corners)
    targets = torch.where(replace, constant(_BOTTOM_MIDDLE, targets.dtype, device), targets)
    complete = ~missing.any(-1) | substituted
    # Absent points may be anything, even not a number: keep them out of the arithmetic.
    return torch.where(complete[..., None, None], corners, 0.0), targets, complete, substituted


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Third component of the cross product of (..., 2) vectors; positive for a clockwise turn on the screen."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _least_sine(corners: Tensor) -> Tensor:
    """Least sine of the turn at the corners of (..., 4, 2) quadrilaterals: positive only if convex and clockwise."""
    edges = corners.roll(-1, dims=-2) - corners
    lengths = torch.linalg.vector_norm(edges, dim=-1)
    products = (lengths * lengths.roll(-1, dims=-1)).clamp(min=torch.finfo(edges.dtype).tiny)
    sines: Tensor = _cross(edges, edges.roll(-1, dims=-2)) / products
    return sines.amin(-1)


def _one_norm(matrices: Tensor) -> Tensor:
    return matrices.abs().sum(-2).amax(-1)


def _scale_at_target_corners(homographies: Tensor) -> Tensor:
    """(N, 4) third homogeneous coordinate at the unit square's corners: one sign everywhere means no horizon inside."""
    square = constant(_UNIT_SQUARE, homographies.dtype, homographies.device)
    return homographies[:, 2, :2] @ square.mT + homographies[:, 2, 2:]


def _project(homographies: Tensor, points: Tensor) -> Tensor:
    """Points (M, 2) through homographies (..., 3, 3) -> (..., M, 2)."""
    lifted = torch.cat((points, torch.ones_like(points[:, :1])), dim=-1)
    mapped: Tensor = lifted @ homographies.mT
    return mapped[..., :2] / mapped[..., 2:]
