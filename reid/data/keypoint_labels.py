"""Keypoint annotation files in the VeRi-776 line format, and the rules that make their points safe to use.

A line is `path x1 y1 ... x20 y20 orientation` in raw-image pixels; `-1 -1` means not visible. The path prefix is the
annotator's, so lines are joined to images by file name without its ending.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from reid.data.layout import read_lines
from reid.data.survey import Finding, Findings, refuse_errors
from reid.keypoints import NUM_KEYPOINTS, ORIENTATION_NAMES

NUM_NUMBERS: Final = 2 * NUM_KEYPOINTS + 1
"""Numbers after the path of a line: 20 points and the orientation."""

CLIP_PIXELS: Final = 2.0
"""A visible point this far outside its image is an annotator's slip and moved to the border; further is invisible."""

OnDuplicate = Literal["refuse", "last"]
"""What to do with an image that is annotated twice in different ways."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeypointLabels:
    """The annotation of N distinct images."""

    names: tuple[str, ...]
    """(N) file names without ending, in the order of the file."""
    keypoints: NDArray[np.float32]
    """(N, 20, 3) x, y in raw-image pixels and visibility 0/1; x = y = 0 where invisible."""
    orientations: NDArray[np.int8]
    """(N,) 0..7 as `ORIENTATION_NAMES` has them, -1 when unknown."""
    num_lines: int
    """Lines read, repetitions included."""
    findings: tuple[Finding, ...]
    rows: Mapping[str, int]
    """Row of each name."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lines(self) -> dict[str, int]:
        """Figures about the file for the doctor."""
        visible = self.keypoints[:, :, 2] > 0
        return {
            "lines": self.num_lines,
            "distinct": len(self),
            "repeated": self.num_lines - len(self),
            "all invisible": int((~visible.any(axis=1)).sum()),
        }

    def find(self, name: str) -> tuple[NDArray[np.float32], int | None] | None:
        """Points (20, 3) and orientation of the image `name` (without ending); None when it has no line."""
        row = self.rows.get(name)
        if row is None:
            return None
        orientation = int(self.orientations[row])
        return self.keypoints[row], orientation if orientation >= 0 else None


def read_keypoint_file(path: str | Path, on_duplicate: OnDuplicate = "refuse") -> KeypointLabels:
    """The annotation in one file.

    Lines that repeat an image with the same numbers are fine and counted (the published VeRi-776 test file repeats its
    first 500). Points that are not finite, or whose x or y alone is -1, become invisible and are counted.

    Args:
        path: Text file in the VeRi-776 line format; blank lines, CRLF and spaces in paths are tolerated.
        on_duplicate: "refuse" an image annotated twice in different ways, or let the "last" line win.

    Raises:
        ValueError: lines without 20 points and an orientation, or conflicting lines under "refuse"; all are counted,
            the first few named.
    """
    labels = survey_keypoint_files([Path(path)], on_duplicate)
    refuse_errors(labels.findings, str(path))
    return labels


def survey_keypoint_files(paths: Sequence[Path], on_duplicate: OnDuplicate = "refuse") -> KeypointLabels:
    """The annotation of several files together, with everything odd as findings instead of an exception."""
    findings = Findings()
    points: dict[str, NDArray[np.float32]] = {}
    orientations: dict[str, int] = {}
    num_lines = 0
    for path in paths:
        for number, line in enumerate(read_lines(path), start=1):
            num_lines += 1
            parsed = _parse_line(line)
            if parsed is None:
                findings.add(
                    "error",
                    "keypoint-line",
                    f"keypoint line that is not a path and {NUM_NUMBERS} numbers (x1 y1 ... x20 y20 orientation): "
                    "mend or delete it",
                    f"{path.name} line {number}: {line[:40]!r}",
                )
                continue
            name, numbers = parsed
            label, orientation = _label(numbers, name, findings)
            if name in points:
                same = np.array_equal(points[name], label) and orientations[name] == orientation
                _add_repetition(findings, name, same, on_duplicate)
            points[name], orientations[name] = label, orientation
    names = tuple(points)
    stacked = np.stack([points[name] for name in names]) if names else np.zeros((0, NUM_KEYPOINTS, 3), np.float32)
    return KeypointLabels(
        names=names,
        keypoints=stacked,
        orientations=np.array([orientations[name] for name in names], dtype=np.int8),
        num_lines=num_lines,
        findings=findings.all(),
        rows={name: row for row, name in enumerate(names)},
    )


def _parse_line(line: str) -> tuple[str, list[float]] | None:
    """Name without folder and ending, and the 41 numbers; None for a line of another shape. Paths may hold spaces."""
    fields = line.rsplit(None, NUM_NUMBERS)
    if len(fields) != NUM_NUMBERS + 1:
        return None
    try:
        numbers = [float(text) for text in fields[1:]]
    except ValueError:
        return None
    path = fields[0].strip().strip("\"'")
    # A number just before the 41 means that the line has too many: the split took the first for a part of the path.
    if re.search(r"\s-?\d+(\.\d+)?$", path):
        return None
    return re.split(r"[\\/]", path)[-1].rsplit(".", 1)[0], numbers


def _label(numbers: list[float], name: str, findings: Findings) -> tuple[NDArray[np.float32], int]:
    """(20, 3) points with visibility and the orientation (-1 unknown) of one line."""
    pairs = np.array(numbers[:-1], dtype=np.float32).reshape(NUM_KEYPOINTS, 2)
    finite = np.isfinite(pairs).all(axis=1)
    absent = pairs == -1
    half = absent.any(axis=1) & ~absent.all(axis=1)
    if not finite.all():
        findings.add(
            "warning",
            "keypoint-not-finite",
            "keypoint line with points that are not numbers: taken as invisible",
            name,
        )
    if half.any():
        findings.add(
            "warning",
            "keypoint-half",
            "keypoint line with points of which only x or y is -1: taken as invisible",
            name,
        )
    visible = finite & ~absent.any(axis=1)
    label = np.zeros((NUM_KEYPOINTS, 3), dtype=np.float32)
    label[visible, :2] = pairs[visible]
    label[:, 2] = visible
    if not visible.any():
        findings.add("note", "keypoints-all-invisible", "keypoint line without a visible point", name)
    orientation = numbers[-1]
    if not math.isfinite(orientation) or orientation not in range(len(ORIENTATION_NAMES)):
        if orientation != -1:
            findings.add(
                "warning",
                "orientation",
                f"keypoint line whose orientation is not 0..{len(ORIENTATION_NAMES) - 1}: taken as unknown",
                f"{name}: {orientation:g}",
            )
        orientation = -1
    return label, int(orientation)


def _add_repetition(findings: Findings, name: str, same: bool, on_duplicate: OnDuplicate) -> None:
    if same:
        findings.add("note", "keypoints-repeated", "keypoint line that repeats an earlier one exactly: harmless", name)
    elif on_duplicate == "last":
        findings.add(
            "warning", "keypoints-conflict", "image annotated again in another way: the last line is used", name
        )
    else:
        findings.add(
            "error",
            "keypoints-conflict",
            'image annotated again in another way: mend the file, or ask for on_duplicate="last"',
            name,
        )


def clean_keypoints(
    keypoints: NDArray[np.float32], width: int, height: int
) -> tuple[NDArray[np.float32], Counter[str]]:
    """Points that lie inside an image of known size: for whoever has opened the image.

    Convention: pixel centres at integers, so the image spans x in [-0.5, width - 0.5]; points inside are untouched.

    Args:
        keypoints: (20, 3) x, y in raw-image pixels and visibility; not changed.
        width: Of the raw image, pixels.
        height: Of the raw image, pixels.

    Returns:
        A new (20, 3) array, x = y = 0 where invisible, and how many visible points were "clipped" (at most 2 px
        outside: moved to the border), "outside" (further: made invisible) and "not_finite" (made invisible). Kinds
        that do not occur are absent.

    Raises:
        ValueError: `keypoints` is not (20, 3), or a side is not positive.
    """
    if keypoints.shape != (NUM_KEYPOINTS, 3):
        raise ValueError(f"expected keypoints of shape ({NUM_KEYPOINTS}, 3), got {keypoints.shape}")
    if width < 1 or height < 1:
        raise ValueError(f"expected an image of at least 1 x 1 pixels, got {width} x {height}")
    visible = keypoints[:, 2] > 0
    finite = np.isfinite(keypoints).all(axis=1)
    points = np.nan_to_num(keypoints[:, :2], nan=0.0, posinf=0.0, neginf=0.0)
    low = np.float32(-0.5)
    high = np.array([width - 0.5, height - 0.5], dtype=np.float32)
    distance = np.maximum(np.maximum(low - points, points - high), 0.0).max(axis=1)
    outside = distance > CLIP_PIXELS
    kept = visible & finite & ~outside
    clipped = kept & (distance > 0)
    cleaned = np.zeros((NUM_KEYPOINTS, 3), dtype=np.float32)
    border = np.array([width - 1, height - 1], dtype=np.float32)
    cleaned[kept, :2] = points[kept]
    cleaned[clipped, :2] = np.clip(points[clipped], 0, border)
    cleaned[:, 2] = kept
    counts = {
        "clipped": int(clipped.sum()),
        "outside": int((visible & finite & outside).sum()),
        "not_finite": int(((keypoints[:, 2] != 0) & ~finite).sum()),
    }
    return cleaned, Counter({kind: count for kind, count in counts.items() if count})
