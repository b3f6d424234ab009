"""The doctor: is a raw data set complete, readable and fit to train on, before a cluster spends hours on it?

Compares counts with the published ones, opens the images, looks for identities on both sides of the split, for names
used twice, and for keypoints that are missing, repeated, outside their image or unlike VeRi-776's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from reid.contracts import Record, Settings, Split
from reid.data.doctor_report import DoctorReport, ImageSummary, KeypointSummary, SplitCount
from reid.data.file_check import FileCheck, check_files
from reid.data.keypoint_labels import OnDuplicate, clean_keypoints, survey_keypoint_files
from reid.data.plane_table import count_planes
from reid.data.shard_plan import PackConfig
from reid.data.survey import Findings, PublishedCount, Severity, Survey, check_keys
from reid.progress import Progress

PACKING: Final = PackConfig()
"""What the doctor calls unusable is what packing with its defaults would skip."""
TEST_SPLITS: Final[tuple[Split, ...]] = ("query", "gallery", "test")


REPAIRS: Final[Mapping[str, str]] = {
    "mismatched_extension": "another format than its name says: harmless",
    "reoriented": "an EXIF rotation: packing turns it upright, its keypoints must refer to the upright image",
    "decoder_warning": "something odd that its decoder tolerates",
}
"""What packing does about oddities, for people."""


class DoctorConfig(Settings):
    """How thorough the doctor is and what it forgives."""

    max_images: int | None = Field(None, ge=0)
    """Open at most this many files, drawn with `seed`; None: all; 0: none."""
    seed: int = Field(0, ge=0)
    """Seed of that draw."""
    num_threads: int = Field(8, ge=1)
    """Files opened at the same time."""
    min_side_pixels: int = Field(PACKING.min_side, ge=1)
    """An image with a shorter side is too small to show a vehicle."""
    max_pixels: int = Field(PACKING.max_pixels, ge=1)
    """An image whose header declares more pixels is not decoded (decompression bomb)."""
    max_unusable_share: float = Field(PACKING.max_bad_fraction, ge=0.0, le=1.0)
    """Share of the opened files that may be unusable before that forbids training."""
    allow_overlap: bool = False
    """Only warn about vehicles that both train and test images show."""


def check_survey(survey: Survey, options: DoctorConfig | None = None, progress: Progress | None = None) -> DoctorReport:
    """The doctor's report on a data set that a reader has surveyed; its findings are included."""
    options = options or DoctorConfig()
    findings = Findings()
    findings.extend(survey.findings)
    records = survey.records
    if not records:
        findings.add("error", "no-images", "data set without a single usable record")
    check_keys(records, findings)
    _check_identities(records, options, findings)
    _check_cameras(records, findings)
    counts = _count(records, survey.published)
    for count in counts:
        if not count.as_published:
            message = "split whose counts differ from the published ones: another release, or a part of it?"
            name = count.split if count.subset is None else f"{count.split} {count.subset}"
            findings.add("warning", "published-count", message, name)
    images = None if options.max_images == 0 else _check_files(records, options, findings, progress)
    return DoctorReport(
        data_set=survey.data_set,
        root=survey.root,
        counts=counts,
        images=images,
        keypoints=_check_annotated(records, survey.keypoint_lines, findings),
        facts=_facts(records),
        findings=findings.all(),
    )


def check_records(
    records: Sequence[Record], options: DoctorConfig | None = None, progress: Progress | None = None
) -> DoctorReport:
    """The doctor's report on records from anywhere."""
    return check_survey(Survey(data_set="records", root=Path(), records=list(records)), options, progress)


def check_keypoint_files(paths: Sequence[Path], on_duplicate: OnDuplicate = "refuse") -> DoctorReport:
    """The doctor's report on keypoint files alone, without images.

    Raises:
        ValueError: a file cannot be read.
    """
    labels = survey_keypoint_files(paths, on_duplicate)
    findings = Findings()
    findings.extend(labels.findings)
    if not len(labels):
        findings.add("error", "no-keypoints", "keypoint file without a usable line")
    orientations = [int(code) if code >= 0 else None for code in labels.orientations]
    return DoctorReport(
        data_set="keypoint annotation",
        root=paths[0] if len(paths) == 1 else paths[0].parent,
        keypoints=_summarise(labels.names, labels.keypoints, orientations, labels.lines, findings),
        findings=findings.all(),
    )


def _count(records: Sequence[Record], published: Sequence[PublishedCount]) -> tuple[SplitCount, ...]:
    """Every split and subset that exists or is published, in the order of publication."""
    groups: dict[tuple[Split, str | None], list[Record]] = {(count.split, count.subset): [] for count in published}
    expected = {(count.split, count.subset): count for count in published}
    for record in records:
        for subset in record.subsets or (None,):
            groups.setdefault((record.split, subset), []).append(record)
    return tuple(
        SplitCount(
            split=split,
            subset=subset,
            images=len(group),
            identities=len({record.vehicle_id for record in group}),
            cameras=len({record.camera_id for record in group} - {None}),
            annotated=sum(record.keypoints is not None for record in group),
            published_images=expected[split, subset].images if (split, subset) in expected else None,
            published_identities=expected[split, subset].identities if (split, subset) in expected else None,
        )
        for (split, subset), group in groups.items()
    )


def _check_identities(records: Sequence[Record], options: DoctorConfig, findings: Findings) -> None:
    """Vehicles on both sides of the split, and queries that nothing in the gallery can answer."""
    vehicles: dict[str, set[str]] = defaultdict(set)
    for record in records:
        vehicles[record.split].add(record.vehicle_id)
    tested = set[str]().union(*(vehicles[split] for split in TEST_SPLITS))
    overlap = sorted(vehicles["train"] & tested)
    for vehicle in overlap:
        message = "vehicle that both train and test images show: figures would be too good" + (
            " (allowed)" if options.allow_overlap else "; move its images to one side, or allow the overlap"
        )
        findings.add("warning" if options.allow_overlap else "error", "identity-overlap", message, vehicle)
    for split, other in (("query", "gallery"), ("gallery", "query")):
        if vehicles[split] and not vehicles[other]:
            findings.add(
                "warning", "no-counterpart", f"data set with {split} but without {other} images: nothing to score"
            )
    if records and len(vehicles["train"]) < 2:
        findings.add("warning", "few-identities", "data set with fewer than 2 vehicles in train: it cannot train")
    if vehicles["query"] and vehicles["gallery"]:
        cameras: dict[str, Counter[str | None]] = defaultdict(Counter)
        for record in records:
            if record.split == "gallery":
                cameras[record.vehicle_id][record.camera_id] += 1
        in_gallery = {record.path for record in records if record.split == "gallery"}
        for record in records:
            if record.split != "query":
                continue
            if record.camera_id is None and record.path in in_gallery:
                message = (
                    "query of unknown camera that is a gallery image too: it finds itself, figures are too good; give"
                    " its camera_id, or leave it out of the gallery"
                )
                findings.add("warning", "query-in-gallery", message, record.key)
            seen = cameras[record.vehicle_id]
            # With an unknown camera nothing is junk, so any image of the vehicle answers.
            answers = seen.total() - (seen[record.camera_id] if record.camera_id is not None else 0)
            if answers == 0:
                message = "query whose vehicle no other camera saw in the gallery: not scored"
                findings.add("warning", "query-without-match", message, record.key)


def _check_cameras(records: Sequence[Record], findings: Findings) -> None:
    unknown = [record for record in records if record.camera_id is None]
    if unknown and len(unknown) < len(records):
        message = "image of unknown camera among images of known ones: its junk is not removed"
        findings.add("warning", "no-camera", message, unknown[0].key, count=len(unknown))


def _facts(records: Sequence[Record]) -> dict[str, str]:
    images = Counter(record.vehicle_id for record in records if record.split == "train")
    if not images:
        return {}
    sizes = sorted(images.values())
    singles = sum(size == 1 for size in sizes)
    return {
        "images of a training vehicle": f"{sizes[0]:,} to {sizes[-1]:,}, median {sizes[len(sizes) // 2]:,}; "
        f"{singles:,} vehicles have a single one, {sum(size < 4 for size in sizes):,} fewer than 4"
    }


def _check_files(
    records: Sequence[Record], options: DoctorConfig, findings: Findings, progress: Progress | None
) -> ImageSummary:
    """Opens every file once (or a drawn sample), and what needs the opened files: sizes, points outside, copies."""
    by_path: dict[Path, Record] = {record.path: record for record in reversed(records)}
    paths = sorted(by_path)
    total = len(paths)
    if options.max_images is not None and options.max_images < total:
        drawn = np.random.default_rng(options.seed).choice(total, size=options.max_images, replace=False)
        paths = [paths[number] for number in sorted(drawn)]
    limits = {"min_side": options.min_side_pixels, "max_pixels": options.max_pixels, "num_threads": options.num_threads}
    faulty: dict[str, list[Path]] = defaultdict(list)
    sides: list[int] = []
    points: Counter[str] = Counter()
    copies: dict[bytes, list[Record]] = defaultdict(list)
    sizes: dict[Path, tuple[int, int]] = {}
    for path, check in zip(paths, check_files(paths, **limits, progress=progress), strict=True):
        record = by_path[path]
        if check.fault is not None:
            faulty[check.fault].append(path)
            continue
        sides += [check.width, check.height]
        copies[check.digest].append(record)
        if record.mask_path is not None:
            sizes[record.mask_path] = (check.width, check.height)
        for repair in check.repairs:
            findings.add("note", repair.replace("_", "-"), f"image with {REPAIRS.get(repair, repair)}", _place(path))
        points += _check_points(record, check, findings)
    share = sum(map(len, faulty.values())) / max(len(paths), 1)
    severity: Severity = "error" if share > options.max_unusable_share else "warning"
    for fault, found in faulty.items():
        message = (
            f"{fault.replace('_', ' ')}: {share:.1%} of the files are unusable, limit {options.max_unusable_share:.1%}"
        )
        for path in found:
            findings.add(severity, fault.replace("_", "-"), message, _place(path))
    _check_copies(copies, findings)
    _check_masks(sizes, limits, findings)
    return ImageSummary(
        checked=len(paths),
        total=total,
        faults={fault: len(found) for fault, found in faulty.items()},
        shortest_side=min(sides, default=0),
        longest_side=max(sides, default=0),
        points_clipped=points["clipped"],
        points_outside=points["outside"],
    )


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _check_points(record: Record, check: FileCheck, findings: Findings) -> Counter[str]:
    if record.keypoints is None:
        return Counter()
    _, counts = clean_keypoints(record.keypoints, check.width, check.height)
    if counts["outside"]:
        message = "image with visible keypoints more than 2 px outside it: those are taken as invisible"
        findings.add("warning", "keypoints-outside", message, record.key)
    if counts["clipped"]:
        findings.add("note", "keypoints-clipped", "image with keypoints up to 2 px outside it: moved in", record.key)
    return counts


def _check_copies(copies: Mapping[bytes, Sequence[Record]], findings: Findings) -> None:
    """Files with the same bytes under two vehicles, or on both sides of the split."""
    for group in copies.values():
        if len(group) < 2:
            continue
        names = " = ".join(sorted(record.key for record in group)[:2])
        if len({record.vehicle_id for record in group}) > 1:
            findings.add(
                "warning", "copied-image", "file that is a copy of another vehicle's: one label is wrong", names
            )
        elif len({record.split == "train" for record in group}) > 1:
            findings.add("warning", "copied-image", "test file that is a copy of a training file", names)
        elif len({record.path.name for record in group}) > 1:  # a query lies in the gallery under its own name
            findings.add("note", "copied-image", "file that is a copy of another of the same vehicle", names)


def _check_masks(sizes: Mapping[Path, tuple[int, int]], limits: Mapping[str, int], findings: Findings) -> None:
    """Masks must open and be as large as their image; `sizes` holds (width, height) of the image of each mask."""
    masks = list(sizes)
    checks = check_files(masks, min_side=1, max_pixels=limits["max_pixels"], num_threads=limits["num_threads"])
    for mask, check in zip(masks, checks, strict=True):
        if check.fault is not None:
            findings.add("error", "mask-unreadable", f"mask that cannot be read ({check.fault})", _place(mask))
        elif (check.width, check.height) != sizes[mask]:
            findings.add("error", "mask-size", "mask of another size than its image", _place(mask))


def _check_annotated(records: Sequence[Record], lines: Mapping[str, int], findings: Findings) -> KeypointSummary | None:
    """Keypoints of the distinct images that have them (queries lie in the gallery too); None without any."""
    annotated = {record.key: record for record in records if record.keypoints is not None}
    if not annotated:
        return None
    keypoints = np.stack([record.keypoints for record in annotated.values() if record.keypoints is not None])
    orientations = [record.orientation for record in annotated.values()]
    return _summarise(list(annotated), keypoints, orientations, lines, findings)


def _summarise(
    names: Sequence[str],
    keypoints: NDArray[np.float32],
    orientations: Sequence[int | None],
    lines: Mapping[str, int],
    findings: Findings,
) -> KeypointSummary:
    planes = count_planes(keypoints)
    visible = keypoints[:, :, 2] > 0  # (N, 20)
    for row in np.flatnonzero(_contradictions(visible, orientations)):
        message = "image whose orientation contradicts its own visible points: the orientation is not used in training"
        findings.add("note", "orientation-contradiction", message, names[int(row)])
    if planes.front_and_back:
        message = "image that shows front and back at once: keypoints in another order, or labels mixed up?"
        findings.add("warning", "front-and-back", message, count=planes.front_and_back)
    if len(keypoints) and not any(planes.visible.values()):
        message = "annotation that shows no plane in any image: are its points in VeRi-776's order and in pixels?"
        findings.add("warning", "no-planes", message)
    return KeypointSummary(
        lines=dict(lines),
        visible_points=float(visible.sum(axis=1).mean()) if len(visible) else 0.0,
        planes=planes,
    )


def _contradictions(visible: NDArray[np.bool_], orientations: Sequence[int | None]) -> NDArray[np.bool_]:
    """(N,) labels "front" with more rear than front points, "left" with more right than left wheels, and so on."""

    def number(*keypoints: int) -> NDArray[np.int64]:
        counted: NDArray[np.int64] = visible[:, [keypoint - 1 for keypoint in keypoints]].sum(axis=1)
        return counted

    def labelled(*codes: int) -> NDArray[np.bool_]:
        return np.array([orientation in codes for orientation in orientations], dtype=np.bool_)

    front, rear = number(5, 6, 7, 8, 9, 10), number(17, 18, 19, 20)
    left, right = number(1, 2), number(3, 4)
    return (
        (labelled(0, 3, 6) & (rear > front))
        | (labelled(1, 4, 7) & (front > rear))
        | (labelled(2, 3, 4) & (right > left))
        | (labelled(5, 6, 7) & (left > right))
    )
