"""From heat maps to keypoints: the largest cell, refined below a cell, carried back to the raw image (METHOD 1.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Refinement = Literal["quarter", "taylor", "none"]
Score = Literal["peak", "mass"]

_MASS_REACH: Final = 3
"""Cells from the largest one that its mass counts, in each direction: all of a Gaussian of one cell."""


def find_peaks(maps: Tensor, refinement: Refinement, score: Score = "peak") -> Tensor:
    """Place and height of the largest cell of each map (the first one in row order when several are equal).

    quarter: a quarter cell towards the higher neighbour, on each axis (the usual decoding of Newell et al. 2016).
    taylor: the maximum of the parabola through the logarithm of the 3 x 3 cells around (Zhang et al., DARK, CVPR 2020,
    Eq. 3-9; ours uses neighbouring cells and does not blur the map first), exact for a Gaussian; at most one cell, and
    none where the cells are not concave. On the map's border an axis is not refined.

    With squared error the best map is the Gaussian's mean over all places that the point may have, times the
    probability that it is visible. An uncertain place flattens the peak, the sum of the cells stays: "mass" takes the
    sum of the 7 x 7 cells around in the height's stead, over 2 pi, that of a Gaussian of one cell.

    Args:
        maps: (B, K, h, w), any floating dtype.
        refinement: What is done below a cell.
        score: What tells whether the point is visible.

    Returns:
        (B, K, 3) float32: column, row, height (or mass) of the peak.
    """
    maps = maps.detach().float()
    batch, count, rows, columns = maps.shape
    heights, cells = maps.flatten(2).max(dim=2)  # (B, K)
    if score == "mass":
        sums = F.avg_pool2d(maps, 2 * _MASS_REACH + 1, stride=1, padding=_MASS_REACH, divisor_override=1)
        heights = sums.flatten(2).gather(2, cells[..., None])[..., 0] / (2 * torch.pi)
    row, column = cells // columns, cells % columns
    peaks = torch.stack((column, row), dim=-1).float()  # (B, K, 2)
    inside = torch.stack(((column > 0) & (column < columns - 1), (row > 0) & (row < rows - 1)), dim=-1)
    images = torch.arange(batch, device=maps.device)[:, None]
    numbers = torch.arange(count, device=maps.device)[None]

    def cell(down: int, across: int) -> Tensor:
        """(B, K) value beside the peak; on the border that of the border itself."""
        return maps[images, numbers, (row + down).clamp(0, rows - 1), (column + across).clamp(0, columns - 1)]

    match refinement:
        case "quarter":
            slope = torch.stack((cell(0, 1) - cell(0, -1), cell(1, 0) - cell(-1, 0)), dim=-1)
            offset = 0.25 * slope.sign()
        case "taylor":
            offset = _parabola_offset(cell)
        case "none":
            offset = torch.zeros_like(peaks)
    return torch.cat((peaks + torch.where(inside, offset, 0.0), heights[..., None]), dim=-1)


def _parabola_offset(cell: Callable[[int, int], Tensor]) -> Tensor:
    """(B, K, 2) column and row offset of the maximum of the parabola through the logarithms of the cells around."""

    def log(down: int, across: int) -> Tensor:
        return cell(down, across).double().clamp(min=1e-10).log()

    here = log(0, 0)
    dx, dy = (log(0, 1) - log(0, -1)) / 2, (log(1, 0) - log(-1, 0)) / 2
    dxx, dyy = log(0, 1) - 2 * here + log(0, -1), log(1, 0) - 2 * here + log(-1, 0)
    dxy = (log(1, 1) - log(1, -1) - log(-1, 1) + log(-1, -1)) / 4
    determinant = dxx * dyy - dxy.square()
    concave = (dxx < 0) & (determinant > 1e-12)
    safe = torch.where(concave, determinant, 1.0)
    offset = torch.stack(((dxy * dy - dyy * dx) / safe, (dxy * dx - dxx * dy) / safe), dim=-1)
    return torch.where(concave[..., None], offset, 0.0).clamp(-1, 1).float()


def peaks_to_raw(
    peaks: NDArray[np.floating], map_size: tuple[int, int], raw_sizes: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Peaks in pixels of the raw images, which were resized to the network's input as a whole.

    Args:
        peaks: (B, K, 3) column, row, height, from `find_peaks`.
        map_size: Rows and columns of the maps.
        raw_sizes: (B, 2) height and width of each raw image.

    Returns:
        (B, K, 3) float32: x, y, height of the peak.

    Convention: centres of cells and pixels at integers: x = (column + 0.5) * width / columns - 0.5.
    """
    scale = np.asarray(raw_sizes, dtype=np.float64)[:, None, ::-1] / np.array(map_size[::-1], dtype=np.float64)
    raw = np.array(peaks, dtype=np.float64)
    raw[..., :2] = (raw[..., :2] + 0.5) * scale - 0.5
    return raw.astype(np.float32)


def with_visibility(peaks: NDArray[np.floating], thresholds: NDArray[np.floating]) -> NDArray[np.float32]:
    """Keypoints (B, K, 3) x, y, visible 0/1 from peaks: visible when higher than the keypoint's (K,) threshold.

    Invisible points are all zero, as they are in shards.
    """
    visible = peaks[..., 2] > thresholds
    keypoints = np.where(visible[..., None], peaks, 0.0).astype(np.float32)
    keypoints[..., 2] = visible
    return keypoints


def fit_thresholds(heights: NDArray[np.floating], visible: NDArray[np.bool_], default: float) -> NDArray[np.float64]:
    """The threshold of each keypoint with the largest F1 of visibility on held-out images.

    Candidates are the default, the middles between neighbouring heights and half the lowest one; of equally good ones
    the nearest to the default is taken.

    Args:
        heights: (N, K) peaks.
        visible: (N, K) what the annotation says.
        default: Kept where no image shows the keypoint: nothing can be fitted there.

    Returns:
        (K,) thresholds; a keypoint is visible above its own.
    """
    thresholds = np.full(heights.shape[1], default, dtype=np.float64)
    for number in range(heights.shape[1]):
        shown = visible[:, number]
        if not shown.any():
            continue
        order = np.argsort(heights[:, number], kind="stable")
        values = heights[order, number].astype(np.float64)
        candidates = np.append(_between(values), default)
        hits_above = np.append(np.cumsum(shown[order][::-1])[::-1], 0)  # in values[i:]
        places = np.searchsorted(values, candidates, side="right")
        f1 = 2 * hits_above[places] / (len(values) - places + shown.sum())
        best = np.lexsort((np.abs(candidates - default), -f1))[0]
        thresholds[number] = candidates[best]
    return thresholds


def _between(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds that tell heights apart: the middles of neighbouring ones, and one below all (half the lowest)."""
    distinct = np.unique(values)
    lowest = values[0] / 2 if values[0] > 0 else np.nextafter(values[0], -np.inf)
    return np.append(lowest, (distinct[1:] + distinct[:-1]) / 2)
