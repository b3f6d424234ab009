"""Figures over the severity of occlusion as a picture, and stored ones to compare with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from reid.build.occlusion import SeverityResult
from reid.visual.curves import draw_curves

PICTURE_ENDINGS: Final = (".png", ".svg")
_FIGURES: Final = ("mAP", "R1")

Stored = dict[str, Any]
"""As `SeverityResult.to_json` gives it."""


def check_picture_name(path: Path) -> None:
    """ValueError for a curve that is neither PNG nor SVG."""
    if path.suffix.lower() not in PICTURE_ENDINGS:
        raise ValueError(f"{path}: expected a name that ends in .png or .svg")


def read_severities(path: Path) -> list[Stored]:
    """What an evaluation of occluded queries stored in a JSON file.

    Raises:
        ValueError: The file is of something else.
    """
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(stored, list) or not all(isinstance(item, dict) and "occlusion" in item for item in stored):
        raise ValueError(f"{path} holds no figures by severity: make it with jobs/evaluate.py --occluded ... --output")
    return stored


def refuse_other_seed(path: Path, seed: int) -> None:
    """ValueError for stored figures that a curve of this seed cannot show, as far as the file alone tells."""
    others = {item["occlusion"].get("seed", seed) for item in read_severities(path)} - {seed}
    if others:
        raise ValueError(f"{path} has other patches, of seed {min(others)}, not {seed}: evaluate on the same")


def write_curve(results: Sequence[SeverityResult], others: Sequence[Path], path: Path) -> None:
    """Draws mAP and R1 over the severity, a line for each run and protocol; re-ranked too where all results are.

    Args:
        results: Figures to draw.
        others: JSON files of other checkpoints on the same patches.
        path: PNG or SVG file, by its ending.

    Raises:
        ValueError: Another ending, a file of something else, other patches, or twice the same line.
    """
    check_picture_name(path)
    stored = [result.to_json() for result in results]
    patches = _patches(stored)
    for other in others:
        found = read_severities(other)
        for place, name in _patches(found).items():
            if patches.get(place, name) != name:
                protocol, severity = place
                raise ValueError(
                    f"{other} has other patches at severity {severity:g} of {protocol} (sha256 {name[:12]},"
                    f" here {patches[place][:12]}): another seed or data set; evaluate on the same"
                )
        stored += found
    curves = _curves(stored)
    runs = {item["occlusion"]["run"] for item in stored}
    protocols = {item["occlusion"]["protocol"] for item in stored}
    title = ", ".join([*(sorted(runs) if len(runs) == 1 else []), *(sorted(protocols) if len(protocols) == 1 else [])])
    picture = draw_curves(
        curves,
        x_label="covered share of each query, %",
        y_label="%",
        title=title,
        from_zero=True,
        num_per_colour=len(_figures(stored)),
        size_inches=(6.4, 3.8),
        picture_format="svg" if path.suffix.lower() == ".svg" else "png",
    )
    path.write_bytes(picture)


def _patches(stored: Sequence[Stored]) -> dict[tuple[str, float], str]:
    """Protocol and severity -> hash of the patches."""
    occlusions = [item["occlusion"] for item in stored]
    return {(o["protocol"], o["severity"]): o["patches_sha256"] for o in occlusions if o["severity"] > 0}


def _figures(stored: Sequence[Stored]) -> list[str]:
    """The figures that are drawn: of all results, so that lines of different runs stand beside each other."""
    reranked = [f"{name}+RR" for name in _FIGURES]
    has_reranked = all(name in item["figures"] for item in stored for name in reranked)
    return [*_FIGURES, *(reranked if has_reranked else [])]


def _curves(stored: Sequence[Stored]) -> dict[str, list[tuple[float, float]]]:
    """Points in percent by the name of their line, which says no more than tells the lines apart."""
    several = {name: len({item["occlusion"][name] for item in stored}) > 1 for name in ("run", "protocol")}
    curves: dict[str, dict[float, float]] = {}
    figures = _figures(stored)
    for item in stored:
        occlusion = item["occlusion"]
        for figure in figures:
            line = " ".join([*(occlusion[name] for name in ("run", "protocol") if several[name]), figure])
            points = curves.setdefault(line, {})
            if occlusion["severity"] in points:
                raise ValueError(
                    f"two checkpoints of {occlusion['run']} on {occlusion['protocol']}: one line can be drawn"
                )
            points[occlusion["severity"]] = item["figures"][figure]
    return {
        line: [(100 * severity, 100 * points[severity]) for severity in sorted(points)]
        for line, points in curves.items()
    }
