"""Rank lists: a query and its nearest gallery images, right ones in green and wrong ones in red frames."""

from __future__ import annotations

from collections.abc import Sequence

from reid.visual.mosaic import (
    BLUE,
    GREEN,
    GREY,
    INK,
    PAPER,
    RED,
    Image,
    captioned,
    column,
    filled,
    fit_tile,
    framed,
    row,
    write_text,
)


def rank_list_picture(
    query: Image,
    gallery: Sequence[Image],
    is_positive: Sequence[bool],
    *,
    captions: Sequence[str] = (),
    query_caption: str = "query",
    tile_size: int = 112,
    length: int | None = None,
) -> Image:
    """One rank list as a strip: the query in blue, then the nearest images from left to right.

    Args:
        query: (H, W, 3) uint8 RGB.
        gallery: Kept gallery images (no junk), nearest first, of any sizes.
        is_positive: Whether each shows the query's vehicle.
        captions: A line below each, such as camera and distance.
        query_caption: The line below the query.
        tile_size: Pixels of a side of each tile, without its frame.
        length: Places in the strip; places beyond a short gallery stay empty. Default: as many as images.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: If the numbers of images, marks and captions differ.
    """
    if len(gallery) != len(is_positive) or (captions and len(captions) != len(gallery)):
        raise ValueError(
            f"expected a mark and, if any, a caption for each of {len(gallery)} gallery images, "
            f"got {len(is_positive)} marks and {len(captions)} captions"
        )
    frame = max(3, tile_size // 28)
    first = captioned(framed(fit_tile(query, tile_size), BLUE, frame), query_caption, INK)
    tiles = [first, filled(first.shape[0], 4, PAPER)]
    for rank, (image, positive) in enumerate(zip(gallery, is_positive, strict=True), start=1):
        colour = GREEN if positive else RED
        # A sign as well as a colour, for readers who cannot tell green from red.
        text = f"{rank} {'=' if positive else 'x'}" + (f" {captions[rank - 1]}" if captions else "")
        tiles.append(captioned(framed(fit_tile(image, tile_size), colour, frame), text, colour))
    for _ in range(len(gallery), length or 0):
        empty = framed(filled(tile_size, tile_size, PAPER), GREY, 1)
        margin = frame - 1
        tiles.append(captioned(framed(empty, PAPER, margin) if margin else empty, "", GREY))
    return framed(row(tiles), PAPER, 6)


def rank_lists_sheet(strips: Sequence[tuple[str, Image]]) -> Image:
    """Several strips below one another, each with its title.

    Raises:
        ValueError: If there are none.
    """
    if not strips:
        raise ValueError("expected at least one rank list, got none")
    parts: list[Image] = []
    for title, strip in strips:
        bar = filled(24, strip.shape[1], PAPER)
        write_text(bar, title, (6, 17), 0.5, INK, max_width=strip.shape[1] - 12)
        parts += [bar, strip]
    return column(parts, gap=0)
