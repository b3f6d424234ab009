"""What the keypoint detector is trained towards: a Gaussian per keypoint, compared on every stack (METHOD 1.6)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from reid.contracts import HeatMapOutput, LossTerms, Settings


class HeatMapLossConfig(Settings):
    """Targets and loss of the keypoint detector."""

    sigma: float = Field(default=1.0, gt=0)
    """Standard deviation of the Gaussian, in cells of the heat map."""
    centre: Literal["exact", "rounded"] = "exact"
    """exact: the Gaussian lies at the point; rounded: at the nearest cell, as Newell's training code draws it, which
    shifts the target by up to half a cell (Zhang et al., DARK, CVPR 2020)."""
    invisible: Literal["zero", "masked"] = "zero"
    """zero: a point that is not visible is supervised with an all-zero map, so that a low peak means "not visible".
    masked: it is not supervised at all, the literal form; its peak then says nothing."""


def gaussian_maps(
    keypoints: Tensor, height: int, width: int, stride: int, sigma: float, *, rounded: bool = False
) -> Tensor:
    """Target maps: exp(-d**2 / (2 sigma**2)) at distance d cells from the point, all zero where it is not visible.

    Source: Newell et al. 2016, section 3.1 ("a 2D gaussian, standard deviation of 1 px, centered on the joint
    location"). Ours draws the whole Gaussian; published code cuts it off at 3 sigma, where it is 0.011.

    Args:
        keypoints: (B, K, 3) x, y in pixels of the image and visibility (> 0 is visible).
        height: Rows of the maps.
        width: Columns of the maps.
        stride: Pixels per cell.
        sigma: In cells.
        rounded: Move each point to the nearest cell first.

    Returns:
        (B, K, height, width) float32, 0..1.

    Convention: pixel and cell centres at integers, so image x lies at column (x + 0.5) / stride - 0.5.
    """
    places = (keypoints[..., :2].float() + 0.5) / stride - 0.5  # (B, K, 2)
    if rounded:
        places = places.round()
    down = torch.arange(height, device=keypoints.device, dtype=torch.float32)
    across = torch.arange(width, device=keypoints.device, dtype=torch.float32)
    # A Gaussian is the product of its two axes.
    vertical = torch.exp(-(down - places[..., 1:]).square() / (2 * sigma**2))  # (B, K, height)
    horizontal = torch.exp(-(across - places[..., :1]).square() / (2 * sigma**2))  # (B, K, width)
    maps = vertical[..., :, None] * horizontal[..., None, :]
    return torch.where((keypoints[..., 2] > 0)[..., None, None], maps, 0.0)


def heat_map_loss(output: HeatMapOutput, keypoints: Tensor, config: HeatMapLossConfig) -> LossTerms:
    """Squared error between heat maps and Gaussians, summed over the stacks (intermediate supervision).

    Source: Newell et al. 2016, section 3.1 (mean squared error at every stack). Ours differs by a constant: the error
    is summed over the cells of a map and averaged over images and keypoints, so that the figure does not depend on the
    map's size (a map that stays zero costs 3.1 where the point is visible); RMSprop does not see the factor.

    Args:
        output: Of the detector.
        keypoints: (B, K, 3) x, y in pixels of the images and visibility 0/1; images that nobody annotated must not be
            in the batch: all their points would count as invisible.
        config: Sigma, centre, what invisible points mean.

    Returns:
        The loss; its parts by stack (first and last); the mean peak of visible and of invisible points on the last
        stack as statistics. The divisor is the number of maps, masked ones included, so that the average over workers
        is the value and gradient of the global batch.
    """
    with torch.autocast(output.maps.device.type, enabled=False):
        maps = output.maps.float()  # (B, S, K, h, w)
        targets = gaussian_maps(
            keypoints, maps.shape[3], maps.shape[4], output.stride, config.sigma, rounded=config.centre == "rounded"
        )
        visible = keypoints[..., 2] > 0  # (B, K)
        errors = (maps - targets[:, None]).square().sum(dim=(3, 4))  # (B, S, K)
        match config.invisible:
            case "masked":
                errors = errors * visible[:, None]
            case "zero":
                pass
        per_stack = errors.mean(dim=(0, 2))  # (S,)
        peaks = maps[:, -1].detach().amax(dim=(2, 3))  # (B, K)
        parts = {"last_stack": per_stack[-1].detach()}
        if len(per_stack) > 1:
            parts["first_stack"] = per_stack[0].detach()
        return LossTerms(
            total=per_stack.sum(),
            parts=parts,
            statistics={
                "peak/visible": _mean_where(peaks, visible),
                "peak/invisible": _mean_where(peaks, ~visible),
            },
        )


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; not a number when there are none, which the log leaves out."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum()
