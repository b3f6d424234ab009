"""What a partial task sees: the foreground brought to the size of a feature map, and a box of the map drawn large.

Convention: boxes are (left, top, right, bottom) as shares 0..1 of width and height, 0 and 1 being the edges. On a map
of w cells the edges lie at 0 and w and the centre of cell j at j + 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masks_on_map(masks: Tensor, height: int, width: int) -> Tensor:
    """Which cells of a map lie on the foreground: those of whose area at least half does.

    Args:
        masks: (B, 1, H, W) 0/1, any dtype.
        height: Of the map, in cells.
        width: Likewise.

    Returns:
        (B, 1, height, width) bool.
    """
    rows = _overlaps(masks.shape[2], height, masks.device)
    columns = _overlaps(masks.shape[3], width, masks.device)
    # Whole numbers in float64, which autocast leaves alone: exactly half is found to be half.
    covered = rows @ masks.double() @ columns.mT
    return 2 * covered >= masks.shape[2] * masks.shape[3]


def crop_boxes(maps: Tensor, boxes: Tensor) -> Tensor:
    """Each map's box, cut out and resized to the size of the map, bilinearly.

    Output cell i of w takes the value at (i + 0.5) / w of the box. Nothing outside the box comes in: where that point
    lies less than half a cell from the box's edge, the value half a cell inside is taken. So the crop of a box whose
    edges lie between cells is the same as `interpolate(..., mode="bilinear", align_corners=False)` of those cells, and
    the box of the whole map gives the map. Of a box narrower than a cell all output cells get the value at its middle.

    All maps go through one matrix product with the weights of their cells: the same numbers in any run, which the
    backward pass of `grid_sample` does not promise on a GPU.

    Args:
        maps: (N, C, h, w), floating; gradients reach it.
        boxes: (N, 4) floating, a box for each map; no gradient.

    Returns:
        (N, C, h, w) in the dtype of `maps`.
    """
    num_maps, _, height, width = maps.shape
    boxes = boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32))
    rows = _bilinear_weights(boxes[:, 1], boxes[:, 3], height)
    columns = _bilinear_weights(boxes[:, 0], boxes[:, 2], width)
    weights = (rows[:, :, None, :, None] * columns[:, None, :, None, :]).view(num_maps, height * width, height * width)
    crops = torch.bmm(weights.to(maps.dtype), maps.flatten(2).mT)  # (N, cells out, C): channels_last
    return crops.mT.view(num_maps, -1, height, width)


def _bilinear_weights(begin: Tensor, end: Tensor, size: int) -> Tensor:
    """(N,) edges of boxes along one axis -> (N, size, size): what each output cell takes of each cell of the map."""
    cells = torch.arange(size, device=begin.device, dtype=begin.dtype)
    begin, end = size * begin[:, None], size * end[:, None]
    middle = (begin + end) / 2
    points = begin + (cells + 0.5) / size * (end - begin)
    points = points.clamp(torch.minimum(begin + 0.5, middle), torch.maximum(end - 0.5, middle)).clamp(0.5, size - 0.5)
    return (1 - (points[:, :, None] - 0.5 - cells).abs()).clamp(min=0)


def _overlaps(num_pixels: int, num_cells: int, device: torch.device) -> Tensor:
    """(num_cells, num_pixels) float64: shared length of cell and pixel; an axis is num_cells * num_pixels long."""
    cells = num_pixels * torch.arange(num_cells, device=device)[:, None]
    pixels = num_cells * torch.arange(num_pixels, device=device)
    begin, end = torch.maximum(cells, pixels), torch.minimum(cells + num_pixels, pixels + num_cells)
    return (end - begin).clamp(min=0).double()
