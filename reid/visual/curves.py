"""Curves of a run as SVG, legible on light and dark pages, or as PNG on white."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Points = Sequence[tuple[float, float]]

_GREY: Final = "#808690"
_COLOURS: Final = (
    "#2484de",
    "#e06c24",
    "#24a860",
    "#a855d4",
    "#da3633",
    "#b8860b",
    "#17a2a2",
    "#808690",
    "#d65fa8",
    "#7d5a3c",
)

_STYLES: Final = ("-", "--", "-.", ":")
_INSIDE: Final = 5
"""More names than these stand below the picture, where they hide no curve."""


def draw_curves(
    curves: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_y: bool = False,
    from_zero: bool = False,
    num_per_colour: int = 1,
    size_inches: tuple[float, float] = (5.2, 3.1),
    picture_format: Literal["svg", "png"] = "svg",
) -> bytes:
    """Named curves in one picture.

    Args:
        curves: (x, y) points by name, in the order they are to be listed.
        x_label: Such as "epoch".
        y_label: Such as "loss".
        title: Above the picture.
        log_y: Logarithmic y axis.
        from_zero: The y axis begins at zero.
        num_per_colour: So many curves, one after the other, share a colour; the first is a line, the others are broken,
            each in its own way.
        size_inches: Width and height.
        picture_format: SVG without a background, or PNG on white.

    Returns:
        The file; the same points give the same bytes.

    Raises:
        ValueError: If there is no point at all.
    """
    if not any(curves.values()):
        raise ValueError(f"expected at least one point to draw for {title or y_label!r}, got none")
    # Not pyplot: no global state, no display, no import-time backend.
    with matplotlib.rc_context({"svg.hashsalt": "curves", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=size_inches, layout="constrained")
        figure.patch.set_alpha(0 if picture_format == "svg" else 1)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        for number, (name, points) in enumerate(curves.items()):
            if not points:
                continue
            x, y = zip(*points, strict=True)
            marker = "o" if len(points) <= 40 else ""
            place, in_group = divmod(number, num_per_colour)
            colour, style = _COLOURS[place % len(_COLOURS)], _STYLES[in_group % len(_STYLES)]
            axes.plot(x, y, label=name, color=colour, linestyle=style, marker=marker, markersize=3, linewidth=1.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        if log_y:
            axes.set_yscale("log")
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label, color=_GREY)
        axes.set_ylabel(y_label, color=_GREY)
        axes.set_title(title, color=_GREY, loc="left", fontsize=10)
        axes.tick_params(colors=_GREY)
        axes.grid(True, color=_GREY, alpha=0.2, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_GREY)
        if len(curves) > _INSIDE:
            figure.legend(
                loc="outside lower center", ncols=3, frameon=False, labelcolor=_GREY, fontsize=7.5, handlelength=4
            )
        elif len(curves) > 1:
            axes.legend(frameon=False, labelcolor=_GREY, fontsize=8, handlelength=4)
        buffer = io.BytesIO()
        metadata = {"Date": None} if picture_format == "svg" else {"Software": None}
        figure.savefig(buffer, format=picture_format, metadata=metadata, dpi=160)
    return buffer.getvalue()
