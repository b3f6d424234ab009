"""Parts of vehicles, an image a row: how PANet came to them (PMANet, Figures 4 and 8), how PMNet answers (Figure 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.parts import uniform_stripes
from reid.visual.activation import overlay_heat
from reid.visual.masks import draw_boxes, draw_mask, scaled
from reid.visual.mosaic import GREY, PAPER, Image, captioned, column, filled, fit_tile, framed, row

TILE: Final = 150


@dataclass(frozen=True, kw_only=True)
class LocatedParts:
    """An image and everything that its parts follow from."""

    image: Image
    """(H, W, 3)."""
    caption: str
    coarse: NDArray[np.uint8] | None
    """(H, W) 0/1 mask that the network learnt from, where there is one."""
    refined: NDArray[np.uint8]
    """(H, W) 0/1."""
    boxes: NDArray[np.floating]
    """(K, 4) left, top, right, bottom as shares of the sides."""
    attention: NDArray[np.floating]
    """(K + 1, h, w): the mean map of all channels, then of the channels of each part."""
    channels: Sequence[int]
    """(K,) channels of each part."""


def parts_sheet(images: Sequence[LocatedParts], *, tile_size: int = TILE) -> Image:
    """A row per image: image, mean attention, attention of each channel group; coarse and refined mask, part boxes and
    what of the vehicle lies in them; uniform stripes, the division that PANet's boxes replace (Figure 8's first row).

    Raises:
        ValueError: If there are none.
    """
    if not images:
        raise ValueError("expected at least one image with parts, got none")
    return framed(column([_strip(located, tile_size) for located in images], gap=10), PAPER, 6)


@dataclass(frozen=True, kw_only=True)
class PartResponses:
    """An image, its parts, and what the branches of PMNet answer."""

    image: Image
    """(H, W, 3)."""
    caption: str
    boxes: NDArray[np.floating]
    """(K, 4) left, top, right, bottom as shares of the sides."""
    maps: Sequence[tuple[str, NDArray[np.floating], NDArray[np.floating]]]
    """Name of a task and its (K, h, w) response maps before and after attention, over the whole image or, when the
    name is "partial", over each part."""


def responses_sheet(images: Sequence[PartResponses], *, tile_size: int = TILE) -> Image:
    """Per image the image with its parts, and for each task a row of maps before and one after attention.

    Maps before and after are on a scale of their own each: what counts is where they are hot.

    Raises:
        ValueError: If there are none.
    """
    if not images:
        raise ValueError("expected at least one image with responses, got none")
    return framed(column([_responses(shown, tile_size) for shown in images], gap=14), PAPER, 6)


def _responses(shown: PartResponses, size: int) -> Image:
    image = scaled(shown.image, size / max(shown.image.shape[:2]))
    height, width = image.shape[:2]
    corners = np.rint(shown.boxes * (width, height, width, height)).astype(int).tolist()
    parts = [image[top : max(bottom, top + 1), left : max(right, left + 1)] for left, top, right, bottom in corners]
    rows = []
    for task, before, after in shown.maps:
        under = parts if task == "partial" else [image] * len(parts)
        tiles = [(draw_boxes(image, shown.boxes), shown.caption)]
        for name, maps in (("before", before), ("after", after)):
            tiles += [
                (overlay_heat(part, _stretched(heat, part.shape[:2])), f"{task} {number} {name}")
                for number, (part, heat) in enumerate(zip(under, maps, strict=True), 1)
            ]
        rows.append(row([captioned(fit_tile(tile, size), caption, GREY) for tile, caption in tiles]))
    return column(rows)


def _strip(located: LocatedParts, size: int) -> Image:
    # Drawn at the size of the tile: outlines are as thick on a small photograph as on a large one.
    scale = size / max(located.image.shape[:2])
    image, refined = scaled(located.image, scale), scaled(located.refined, scale, nearest=True)
    heats = [overlay_heat(image, _stretched(heat, image.shape[:2])) for heat in located.attention]
    groups = [f"part {number + 1}: {count} channels" for number, count in enumerate(located.channels)]
    coarse = filled(*image.shape[:2])
    if located.coarse is not None:
        coarse = draw_mask(image, scaled(located.coarse, scale, nearest=True))
    inside = np.where(_in_boxes(located.boxes, image.shape[:2]) & (refined > 0), 1.0, 0.25)[..., None]
    tiles = [
        (image, located.caption),
        (heats[0], "all channels"),
        *zip(heats[1:], groups, strict=True),
        (coarse, "coarse mask"),
        (draw_mask(image, refined), "refined mask"),
        (draw_boxes(image, located.boxes), "parts"),
        (np.rint(image * inside).astype(np.uint8), "parts x mask"),
        (draw_boxes(image, uniform_stripes(len(located.boxes))), "uniform stripes"),
    ]
    return row([captioned(fit_tile(tile, size), caption, GREY) for tile, caption in tiles])


def _stretched(heat: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) -> (H, W) float32 from 0 to 1."""
    span = float(heat.max() - heat.min())
    scaled = (heat - heat.min()) / span if span else np.zeros_like(heat)
    resized = cv2.resize(scaled.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)


def _in_boxes(boxes: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.bool_]:
    inside = np.zeros(size, dtype=np.bool_)
    for left, top, right, bottom in np.rint(boxes * (size[1], size[0], size[1], size[0])).astype(int).tolist():
        inside[top:bottom, left:right] = True
    return inside
