"""Part boxes channel by channel and point by point, written from METHOD 2.1: flood fill, plain k-means, no weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]


def largest_component(chosen: NDArray[np.bool_], *, neighbours: int = 8) -> list[tuple[int, int]]:
    """(row, column) cells of the largest component; of equally large ones, the first that a reader meets."""
    height, width = chosen.shape
    seen: set[tuple[int, int]] = set()
    largest: list[tuple[int, int]] = []
    for row in range(height):
        for column in range(width):
            if not chosen[row, column] or (row, column) in seen:
                continue
            component, waiting = [], [(row, column)]
            seen.add((row, column))
            while waiting:
                i, j = waiting.pop()
                component.append((i, j))
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        near = (i + di, j + dj)
                        inside = 0 <= near[0] < height and 0 <= near[1] < width
                        touches = neighbours == 8 or di == 0 or dj == 0
                        if inside and touches and chosen[near] and near not in seen:
                            seen.add(near)
                            waiting.append(near)
            if len(component) > len(largest):
                largest = component
    return largest


def centre(
    heat: NDArray[np.floating], foreground: NDArray[np.bool_], max_outside: float, *, neighbours: int = 8
) -> Point | None:
    """(x, y) in cells from the map's corner, None for a channel that is dropped."""
    component = largest_component(heat > float(heat.mean(dtype=np.float64)), neighbours=neighbours)
    if not component:
        return None
    outside = sum(not foreground[cell] for cell in component)
    if outside / len(component) > max_outside:
        return None
    rows, columns = [row for row, _ in component], [column for _, column in component]
    return (min(columns) + max(columns) + 1) / 2, (min(rows) + max(rows) + 1) / 2


def squared_distance(a: Point, b: Point) -> float:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2


def nearest(point: Point, centres: list[Point]) -> int:
    distances = [squared_distance(point, c) for c in centres]
    return distances.index(min(distances))


def plus_plus(points: list[Point], fractions: list[float]) -> list[Point]:
    """First centres: a point is drawn with a chance proportional to its squared distance to the nearest one drawn."""
    drawn: list[Point] = []
    for fraction in fractions:
        mass = [min((squared_distance(p, d) for d in drawn), default=1.0) for p in points]
        goal, reached = fraction * sum(mass), 0.0
        for point, part in zip(points, mass, strict=True):
            reached += part
            if reached > goal:
                drawn.append(point)
                break
    return drawn


def lloyd(points: list[Point], starts: list[Point]) -> tuple[list[Point], list[int], float]:
    centres, owners = list(starts), [nearest(p, starts) for p in points]
    while True:
        for number in range(len(centres)):
            own = [p for p, owner in zip(points, owners, strict=True) if owner == number]
            if own:
                centres[number] = (sum(x for x, _ in own) / len(own), sum(y for _, y in own) / len(own))
        changed = [nearest(p, centres) for p in points]
        if changed == owners:
            cost = sum(squared_distance(p, centres[owner]) for p, owner in zip(points, owners, strict=True))
            return centres, owners, cost
        owners = changed


def part_boxes(
    attention: NDArray[np.floating],
    foreground: NDArray[np.bool_],
    num_parts: int,
    width_share: float,
    fractions: NDArray[np.float64],
    max_outside: float,
) -> tuple[list[list[float]], bool, list[int]]:
    """Boxes, whether they are the fallback, and each channel's part; one run of k-means for each row of fractions."""
    centres = [centre(heat, foreground, max_outside) for heat in attention]
    points = sorted((c for c in centres if c is not None), key=lambda c: (c[1], c[0]))
    if len(set(points)) < num_parts:
        stripes = [[0.0, part / num_parts, 1.0, (part + 1) / num_parts] for part in range(num_parts)]
        return stripes, True, [-1] * len(centres)
    runs = [lloyd(points, plus_plus(points, list(row))) for row in fractions]
    clusters, owners, _ = min(runs, key=lambda run: run[2])
    order = sorted(range(num_parts), key=lambda k: (clusters[k][1], clusters[k][0]))
    height, width = foreground.shape
    boxes = []
    for k in order:
        left = clusters[k][0] / width - width_share / 2
        top = clusters[k][1] / height - 1 / num_parts / 2
        left = min(max(left, 0.0), 1 - width_share)
        top = min(max(top, 0.0), 1 - 1 / num_parts)
        boxes.append([left, top, left + width_share, top + 1 / num_parts])
    part_of_point = {point: order.index(owner) for point, owner in zip(points, owners, strict=True)}
    return boxes, False, [-1 if c is None else part_of_point[c] for c in centres]
