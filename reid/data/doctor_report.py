"""What the doctor found, as one value with a text for people and a JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reid.contracts import Split
from reid.data.plane_table import PlaneTable
from reid.data.survey import Finding
from reid.keypoints import PLANE_NAMES, VERI_PLANE_RATES, VERI_SUBSTITUTION_GAINS


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCount:
    """Size of a split, or of a subset of it, next to what the release says."""

    split: Split
    subset: str | None
    images: int
    identities: int
    cameras: int
    annotated: int
    """Images with a keypoint line."""
    published_images: int | None = None
    published_identities: int | None = None

    @property
    def as_published(self) -> bool:
        """True also when nothing is published."""
        return self.published_images in (None, self.images) and self.published_identities in (None, self.identities)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSummary:
    """What opening the files showed."""

    checked: int
    total: int
    """Distinct files of the data set; more than `checked` when only a sample was opened."""
    faults: Mapping[str, int]
    """Kind of fault -> files."""
    shortest_side: int
    """Of the usable ones, pixels; 0 when there are none."""
    longest_side: int
    points_clipped: int
    """Visible keypoints up to 2 px outside their image."""
    points_outside: int
    """Visible keypoints further outside: treated as invisible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeypointSummary:
    """The annotation of the distinct images that have one."""

    lines: Mapping[str, int]
    """"lines", "distinct", "repeated", "all invisible" of the files; empty without files."""
    visible_points: float
    """Mean number of visible points of an annotated image, 0..20."""
    planes: PlaneTable


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorReport:
    """State of a raw data set."""

    data_set: str
    root: Path
    findings: tuple[Finding, ...]
    counts: tuple[SplitCount, ...] = ()
    images: ImageSummary | None = None
    keypoints: KeypointSummary | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    """Other things worth a line, such as how many vehicles have a single image."""

    @property
    def exit_code(self) -> int:
        """1 when a finding forbids training, else 0; warnings do not fail."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def to_json(self) -> str:
        """The whole report; `planes` additionally as shares next to VeRi-776's."""
        document: dict[str, Any] = asdict(self)
        document["root"] = str(self.root)
        document["exit_code"] = self.exit_code
        if self.keypoints is not None:
            document["keypoints"]["planes"]["rates"] = {
                plane: {
                    "rate": self.keypoints.planes.rate(plane),
                    "gain": self.keypoints.planes.gain(plane),
                    "veri_rate": VERI_PLANE_RATES[plane],
                    "veri_gain": VERI_SUBSTITUTION_GAINS.get(plane, 0.0),
                }
                for plane in PLANE_NAMES
            }
        return json.dumps(document, indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """The report as plain text, a block for each subject."""
        blocks = [f"{self.data_set} in {self.root}"]
        if self.counts:
            blocks.append(_count_block(self.counts))
        if self.images is not None:
            blocks.append(_image_block(self.images))
        if self.keypoints is not None:
            blocks.append(_keypoint_block(self.keypoints))
        if self.facts:
            blocks.append("\n".join(f"{name}: {value}" for name, value in self.facts.items()))
        for severity, title in (("error", "ERRORS"), ("warning", "warnings"), ("note", "notes")):
            lines = [f"  {finding}" for finding in self.findings if finding.severity == severity]
            if lines:
                blocks.append("\n".join([title, *lines]))
        numbers = {kind: sum(item.severity == kind for item in self.findings) for kind in ("error", "warning", "note")}
        verdict = "not fit for use as it is" if self.exit_code else "fit for use"
        counted = ", ".join(f"{number} {kind}{'' if number == 1 else 's'}" for kind, number in numbers.items())
        blocks.append(f"verdict: {verdict} ({counted})")
        return "\n\n".join(blocks)


def _table(rows: Sequence[Sequence[str]], left: int) -> str:
    """Aligned columns, the first `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[:left] = [cell.ljust(width) for cell, width in zip(row[:left], widths[:left], strict=True)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _count_block(counts: Sequence[SplitCount]) -> str:
    published = any(count.published_images is not None for count in counts)
    heading = ["split", "subset", "images", "vehicles", "cameras", "with keypoints"]
    rows = [heading + (["published images", "published vehicles"] if published else [])]
    for count in counts:
        row = [count.split, count.subset or "-", *(f"{number:,}" for number in (count.images, count.identities))]
        row += [f"{count.cameras:,}" if count.cameras else "unknown", f"{count.annotated:,}"]
        if published:
            row += [
                _beside(count.images, count.published_images),
                _beside(count.identities, count.published_identities),
            ]
        rows.append(row)
    return "counts\n" + _table(rows, left=2)


def _beside(actual: int, published: int | None) -> str:
    if published is None:
        return "-"
    return f"{published:,}" + ("  =" if actual == published else " !=")


def _image_block(images: ImageSummary) -> str:
    extent = "all" if images.checked == images.total else f"a sample of {images.checked:,} of"
    usable = images.checked - sum(images.faults.values())
    lines = [f"images: opened {extent} {images.total:,} files, {usable:,} usable"]
    lines += [f"  {fault}: {number:,}" for fault, number in images.faults.items()]
    if usable:
        lines.append(f"  sides from {images.shortest_side:,} to {images.longest_side:,} px")
    lines.append(
        f"  visible keypoints outside their image: {images.points_clipped:,} by at most 2 px (clipped), "
        f"{images.points_outside:,} further (invisible)"
    )
    return "\n".join(lines)


def _keypoint_block(keypoints: KeypointSummary) -> str:
    planes = keypoints.planes
    lines = [f"keypoints: {planes.num_images:,} annotated images, {keypoints.visible_points:.2f} visible points each"]
    if keypoints.lines:
        lines.append(
            "  files: {lines:,} lines, {distinct:,} distinct images, {repeated:,} repeated lines, "
            "{invisible:,} images with all points invisible".format(
                invisible=keypoints.lines["all invisible"],
                **{name: keypoints.lines[name] for name in ("lines", "distinct", "repeated")},
            )
        )
    rows = [["plane", "images", "share", "by substitute", "VeRi-776", "by substitute"]]
    for plane in PLANE_NAMES:
        gain, veri_gain = planes.gain(plane), VERI_SUBSTITUTION_GAINS.get(plane)
        rows.append(
            [
                plane,
                f"{planes.visible[plane]:,}",
                f"{planes.rate(plane):.1%}",
                "-" if veri_gain is None else f"+{gain:.1%}",
                f"{VERI_PLANE_RATES[plane]:.1%}",
                "-" if veri_gain is None else f"+{veri_gain:.1%}",
            ]
        )
    lines.append("planes visible, before area and angle limits")
    lines.append(_table(rows, left=1))
    lines.append(f"  images that show front and back at once: {planes.front_and_back:,}")
    return "\n".join(lines)
