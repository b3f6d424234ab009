"""VERI-Wild in its raw layout: a folder per vehicle, lists in one of two dialects, and a table of cameras and times.

List lines are `vehicle/image` in the first release and `vehicle/image.jpg vehicle camera` in the newer one;
`vehicle_info.txt` comes with or without its header line. Both are recognised by what the lines look like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reid.contracts import Record, Split
from reid.data.layout import Layout, by_casefolded_name, find_root, list_images, read_lines
from reid.data.survey import KEY_PATTERN, Findings, PublishedCount, Survey, readable_records

LAYOUT: Final = Layout(
    data_set="VERI-Wild",
    spellings=frozenset({"veriwild", "veriwild10", "veriwildv1", "veriwildv10", "veriwilddataset"}),
    required=("images", "train_test_split"),
    tree="""\
VERI-Wild/                             (also VeRI-Wild, veriwild ...)
  images/00001/000001.jpg ...          a folder per vehicle
  train_test_split/train_list.txt      lines `00001/000001` or `00001/000001.jpg 1 23` (vehicle, camera)
  train_test_split/test_3000.txt test_3000_query.txt     small; 5000 medium; 10000 large
  train_test_split/vehicle_info.txt    `id/image;Camera ID;Time;Model;Type;Color` (also in the root)""",
)

SIZES: Final[Mapping[str, int]] = {"small": 3000, "medium": 5000, "large": 10000}
"""Subset name and the number in the names of its two lists."""

PUBLISHED: Final = (
    PublishedCount(split="train", images=277_797, identities=30_671),
    PublishedCount(split="query", subset="small", images=3_000, identities=3_000),
    PublishedCount(split="query", subset="medium", images=5_000, identities=5_000),
    PublishedCount(split="query", subset="large", images=10_000, identities=10_000),
    PublishedCount(split="gallery", subset="small", images=38_861, identities=3_000),
    PublishedCount(split="gallery", subset="medium", images=64_389, identities=5_000),
    PublishedCount(split="gallery", subset="large", images=128_517, identities=10_000),
)


@dataclass(frozen=True, slots=True)
class _Info:
    """One line of `vehicle_info.txt`."""

    camera: str
    time: str
    attributes: Mapping[str, str]


def read_veriwild(root: str | Path) -> list[Record]:
    """Every listed image of VERI-Wild: `train`, `query` and `gallery`, the last two with small, medium and large.

    Missing larger lists are tolerated: only the sizes that are there exist then, which the log says.

    Raises:
        ValueError: the folder is not found (shows the expected tree), or the data set has errors (all of them).
    """
    return readable_records(survey_veriwild(root))


def survey_veriwild(root: str | Path) -> Survey:
    """The same records together with everything odd about them; see `read_veriwild`."""
    folder = find_root(root, LAYOUT)
    findings = Findings()
    info = _read_info(folder, findings)
    folders: dict[str, dict[str, Path]] = {}
    lists = folder / "train_test_split"

    wanted: dict[Split, dict[str, str | None]] = {"train": {}, "query": {}, "gallery": {}}
    subsets: dict[tuple[Split, str], list[str]] = {}
    wanted["train"] = _read_list(lists / "train_list.txt", findings)
    for size, number in SIZES.items():
        paths: dict[Split, Path] = {
            "query": lists / f"test_{number}_query.txt",
            "gallery": lists / f"test_{number}.txt",
        }
        absent = [path.name for path in paths.values() if not path.is_file()]
        if len(absent) == len(paths):
            findings.add("note", "absent-size", f"test lists missing: the size {size!r} does not exist here")
            continue
        for split, path in paths.items():
            for image, camera in _read_list(path, findings).items():
                if wanted[split].get(image) is None:
                    wanted[split][image] = camera
                subsets.setdefault((split, image), []).append(size)
    if not wanted["query"]:
        names = ", ".join(f"test_{number}_query.txt" for number in SIZES.values())
        findings.add("error", "no-test-list", f"data set without any query list (expected {names} in {lists.name}/)")
    both = wanted["query"].keys() & wanted["gallery"].keys()
    if both:
        message = "query that is in the gallery too: junk for itself, but a free hit under the -raw protocols"
        findings.add("warning", "query-in-gallery", message, min(both), count=len(both))

    records: list[Record] = []
    for split, entries in wanted.items():
        for image, camera in entries.items():
            vehicle, name = image.split("/")
            if vehicle not in folders:
                place = folder / "images" / vehicle
                folders[vehicle] = by_casefolded_name(list_images(place)) if place.is_dir() else {}
            path_found = folders[vehicle].get(name.casefold())
            key = f"{vehicle}_{name}"
            if path_found is None:
                findings.add(
                    "error", "missing-image", f"{split} image that images/ lacks: unpack the release again", image
                )
                continue
            if not KEY_PATTERN.fullmatch(key):
                message = "image whose name has more than letters, digits, - and _: rename it and its lines"
                findings.add("error", "unparsed-name", message, image)
                continue
            about = info.get(image)
            if about is not None and about.camera and camera is not None and about.camera != camera:
                message = "image whose camera differs between its list and vehicle_info.txt: the list is used"
                findings.add("warning", "label-contradiction", message, image)
            known = camera if camera is not None else about.camera if about is not None else None
            if not known:
                message = f"{split} image without a camera in its list or vehicle_info.txt: its junk is not removed"
                findings.add("warning", "no-camera", message, image)
            records.append(
                Record(
                    key=key,
                    path=path_found,
                    split=split,
                    vehicle_id=vehicle,
                    camera_id=known or None,
                    timestamp=about.time or None if about is not None else None,
                    subsets=tuple(subsets.get((split, image), ())),
                    attributes=about.attributes if about is not None else {},
                )
            )
    return Survey(data_set=LAYOUT.data_set, root=folder, records=records, findings=findings.all(), published=PUBLISHED)


def _read_list(path: Path, findings: Findings) -> dict[str, str | None]:
    """`vehicle/image` (without ending) -> camera, None in the dialect that has none."""
    if not path.is_file():
        findings.add("error", "no-list", "list missing in train_test_split/", path.name)
        return {}
    entries: dict[str, str | None] = {}
    for number, line in enumerate(read_lines(path), start=1):
        fields = re.split(r"[\s,;]+", line)
        parts = re.fullmatch(r"(?:.*[\\/])?(\d+)[\\/]([^\\/.]+)(?:\.\w+)?", fields[0])
        numbered = all(field.isdigit() for field in fields[1:])
        if parts is None or len(fields) not in (1, 3) or not numbered:
            message = (
                f"line of {path.name} that is neither `vehicle/image` nor `vehicle/image.jpg vehicle camera`: mend it"
            )
            findings.add("error", "unparsed-line", message, f"line {number}: {line[:40]!r}")
            continue
        image = f"{parts[1]}/{parts[2]}"
        camera = _without_zeros(fields[2]) if len(fields) == 3 else None
        # The vehicle's number in the line may be a class number of the list, so the folder decides who it is.
        if image in entries:
            findings.add("warning", "repeated-line", f"image that {path.name} lists again: used once", image)
            continue
        entries[image] = camera
    return entries


def _read_info(folder: Path, findings: Findings) -> dict[str, _Info]:
    """`vehicle/image` -> camera, time and attributes from `vehicle_info.txt`, with or without its header line."""
    places = [folder / "train_test_split" / "vehicle_info.txt", folder / "vehicle_info.txt"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        findings.add(
            "note", "no-info", "data set without vehicle_info.txt: cameras come from the lists, times are unknown"
        )
        return {}
    info: dict[str, _Info] = {}
    for number, line in enumerate(read_lines(path), start=1):
        fields = [field.strip() for field in line.split(";")]
        parts = re.fullmatch(r"(\d+)/([^/.]+)(?:\.\w+)?", fields[0])
        if parts is None or len(fields) < 2:
            if number > 1:  # the first line may be the header
                message = "line of vehicle_info.txt that is not `id/image;camera;time;model;type;colour`: ignored"
                findings.add("warning", "unparsed-line", message, f"line {number}: {line[:40]!r}")
            continue
        fields += [""] * (6 - len(fields))
        attributes = dict(zip(("model", "type", "colour"), fields[3:6], strict=True))
        info[f"{parts[1]}/{parts[2]}"] = _Info(
            camera=_without_zeros(fields[1]),
            time=fields[2],
            attributes={name: value for name, value in attributes.items() if value},
        )
    return info


def _without_zeros(camera: str) -> str:
    """One spelling for a camera that lists call 23 and the table 023."""
    return camera.lstrip("0") or camera[:1]
