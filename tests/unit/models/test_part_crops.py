"""Masks on a map and crops of boxes: loops, exact fractions, torch's own resize, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid.models.part_crops import crop_boxes, masks_on_map
from tests.reference import pmnet as reference

BOXES = torch.tensor(
    [[0.0, 0.0, 1.0, 1.0], [0.25, 0.1, 0.75, 0.1 + 1 / 3], [0.5, 2 / 3, 1.0, 1.0], [0.11, 0.42, 0.13, 0.45]],
    dtype=torch.float64,
)
"""The whole map, one between the cells, one at the border, one smaller than a cell."""


def _maps(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [((32, 48), (2, 3)), ((30, 45), (2, 3)), ((7, 9), (4, 5)), ((3, 2), (4, 5))])
def test_a_cell_is_foreground_when_at_least_half_of_its_area_is(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    (height, width), (rows, columns) = sizes
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(3, 1, rows, columns, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    masks = (smooth + 0.2 * torch.rand(3, 1, height, width, generator=generator) > 0.6).to(torch.uint8)
    actual = masks_on_map(masks, rows, columns)
    expected = np.stack([reference.mask_on_map(mask, rows, columns) for mask in masks[:, 0].numpy()])
    assert actual.dtype == torch.bool
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(actual[:, 0].numpy(), expected)


@pytest.mark.parametrize("size", [(30, 42), (256, 256)])
def test_exactly_half_counts_and_a_pixel_less_does_not_also_under_autocast(size: tuple[int, int]) -> None:
    masks = torch.zeros(2, 1, *size, dtype=torch.uint8)
    masks[:, :, :, : size[1] // 2] = 1
    masks[1, 0, 0, 0] = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert masks_on_map(masks, 1, 1).flatten().tolist() == [True, False]
        assert masks_on_map(masks, 2, 1).flatten(1).tolist() == [[True, True], [False, True]]
    assert masks_on_map(masks.bool(), 1, 1).flatten().tolist() == [True, False]


def test_crops_equal_the_loops_each_map_with_its_own_box() -> None:
    maps = _maps(4, 3, 6, 8)
    actual = crop_boxes(maps, BOXES).numpy()
    for image, box, crops in zip(maps.numpy(), BOXES.tolist(), actual, strict=True):
        np.testing.assert_allclose(crops, reference.crop(image, tuple(box)), atol=1e-12)
    for place in (1, 2):  # what looks over the box's edge is another thing
        wrong = reference.crop(maps[place].numpy(), tuple(BOXES[place].tolist()), stays_inside=False)
        assert np.abs(actual[place] - wrong).max() > 0.01


def test_a_box_between_cells_is_the_usual_resize_of_those_cells() -> None:
    maps = _maps(2, 3, 6, 8)
    boxes = torch.tensor([[2 / 8, 1 / 6, 7 / 8, 3 / 6], [0.0, 0.0, 4 / 8, 6 / 6]], dtype=torch.float64)
    cells = (maps[:1, :, 1:3, 2:7], maps[1:, :, 0:6, 0:4])
    expected = torch.cat([F.interpolate(part, (6, 8), mode="bilinear", align_corners=False) for part in cells])
    torch.testing.assert_close(crop_boxes(maps, boxes), expected)
    corners = torch.cat([F.interpolate(part, (6, 8), mode="bilinear", align_corners=True) for part in cells])
    assert (corners - expected).abs().max() > 0.05


def test_away_from_the_edges_crops_are_what_grid_sample_gives() -> None:
    maps, box = _maps(1, 2, 6, 8), BOXES[1:2]
    across = 2 * (box[0, 0] + (torch.arange(8).double() + 0.5) / 8 * (box[0, 2] - box[0, 0])) - 1
    down = 2 * (box[0, 1] + (torch.arange(6).double() + 0.5) / 6 * (box[0, 3] - box[0, 1])) - 1
    grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)[None]
    expected = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    torch.testing.assert_close(crop_boxes(maps, box)[..., 2:4, 1:7], expected[..., 2:4, 1:7])


def test_the_box_of_the_whole_map_gives_the_map() -> None:
    maps = _maps(2, 3, 5, 7)
    torch.testing.assert_close(crop_boxes(maps, BOXES[:1].expand(2, 4)), maps, atol=1e-12, rtol=0)


def test_the_gradient_is_right_and_stays_inside_the_box() -> None:
    maps = _maps(2, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: crop_boxes(values, BOXES[1:3]), (maps,))
    crop_boxes(maps, torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.25]])).sum().backward()
    assert maps.grad is not None
    reached = maps.grad[:, 0] != 0
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, 2:, 1:3] = expected[1, :1, :2] = True
    assert torch.equal(reached, expected)


def test_memory_layout_does_not_matter_and_half_precision_is_close() -> None:
    maps = _maps(4, 3, 6, 8)
    expected = crop_boxes(maps, BOXES)
    torch.testing.assert_close(crop_boxes(maps.to(memory_format=torch.channels_last), BOXES), expected)
    half = crop_boxes(maps.bfloat16(), BOXES.float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, atol=0.01, rtol=0.01)
