"""VehicleID (PKU) in its raw layout: one folder of images and lists of `imagename vehicle` lines.

The lists were corrected after publication (fake plates), so counts may differ from older papers. There are no cameras.
Its protocol draws query and gallery itself, so test images form the split `test` with the sizes that list them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from reid.contracts import Record
from reid.data.layout import Layout, by_casefolded_name, find_root, list_images, read_lines
from reid.data.survey import KEY_PATTERN, Findings, PublishedCount, Survey, readable_records

LAYOUT: Final = Layout(
    data_set="VehicleID",
    spellings=frozenset({"vehicleid", "vehicleidv10", "vehicleidv1", "pkuvehicleid", "pkuvehicleidv10"}),
    required=("image", "train_test_split"),
    tree="""\
VehicleID_V1.0/                        (also VehicleID, vehicleid ...)
  image/0000001.jpg ...
  train_test_split/train_list.txt      lines `imagename vehicle`, name without ending
  train_test_split/test_list_800.txt   small; test_list_1600.txt medium; test_list_2400.txt large
  attribute/model_attr.txt color_attr.txt   (optional)""",
)

SIZES: Final[Mapping[str, int]] = {"small": 800, "medium": 1600, "large": 2400}
"""Subset name and the number in the name of its list. The lists of 3,200, 6,000 and 13,164 vehicles are not scored."""

PUBLISHED: Final = (
    PublishedCount(split="train", images=113_346, identities=13_164),
    PublishedCount(split="test", subset="small", images=6_493, identities=800),
    PublishedCount(split="test", subset="medium", images=13_377, identities=1_600),
    PublishedCount(split="test", subset="large", images=19_777, identities=2_400),
)


def read_vehicleid(root: str | Path) -> list[Record]:
    """Every listed image of VehicleID: `train`, and `test` with subsets among small, medium and large.

    Missing larger test lists are tolerated: only the sizes that are there exist then, which the log says.

    Raises:
        ValueError: the folder is not found (shows the expected tree), or the data set has errors (all of them).
    """
    return readable_records(survey_vehicleid(root))


def survey_vehicleid(root: str | Path) -> Survey:
    """The same records together with everything odd about them; see `read_vehicleid`."""
    folder = find_root(root, LAYOUT)
    findings = Findings()
    images = by_casefolded_name(list_images(folder / "image"))
    attributes = _read_attributes(folder / "attribute")
    lists = folder / "train_test_split"

    train = _read_list(lists / "train_list.txt", findings)
    test: dict[str, str] = {}
    subsets: dict[str, list[str]] = {}
    present = {size: path for size, number in SIZES.items() if (path := lists / f"test_list_{number}.txt").is_file()}
    for size in SIZES.keys() - present.keys():
        findings.add("note", "absent-size", f"test list missing: the size {size!r} does not exist here")
    if not present:
        names = ", ".join(f"test_list_{number}.txt" for number in SIZES.values())
        findings.add("error", "no-test-list", f"data set without any test list (expected {names} in {lists.name}/)")
    for size, path in present.items():
        for image, vehicle in _read_list(path, findings).items():
            if test.setdefault(image, vehicle) != vehicle:
                findings.add("error", "conflicting-id", "image that two test lists give different vehicles", image)
            subsets.setdefault(image, []).append(size)

    records: list[Record] = []
    for split, entries in (("train", train), ("test", test)):
        for image, vehicle in entries.items():
            path_found = images.get(image.casefold())
            if path_found is None:
                findings.add(
                    "error", "missing-image", f"{split} image that image/ lacks: unpack the release again", image
                )
            elif not KEY_PATTERN.fullmatch(path_found.stem):
                message = "image whose name has more than letters, digits, - and _: rename it and its lines"
                findings.add("error", "unparsed-name", message, image)
            else:
                records.append(
                    Record(
                        key=path_found.stem,
                        path=path_found,
                        split="train" if split == "train" else "test",
                        vehicle_id=vehicle,
                        subsets=tuple(subsets.get(image, ())) if split == "test" else (),
                        attributes=attributes.get(vehicle, {}),
                    )
                )
    return Survey(data_set=LAYOUT.data_set, root=folder, records=records, findings=findings.all(), published=PUBLISHED)


def _read_list(path: Path, findings: Findings) -> dict[str, str]:
    """Image name (without ending) -> vehicle of a list with `imagename vehicle` lines."""
    if not path.is_file():
        findings.add("error", "no-list", "list missing in train_test_split/", path.name)
        return {}
    entries: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        fields = re.split(r"[\s,;]+", line)
        if len(fields) != 2 or not fields[1].isdigit():
            message = f"line of {path.name} that is not `imagename vehicle`: mend or delete it"
            findings.add("error", "unparsed-line", message, f"line {number}: {line[:40]!r}")
            continue
        image = re.sub(r"\.(jpe?g|png)$", "", fields[0], flags=re.IGNORECASE)
        if image in entries:
            same = entries[image] == fields[1]
            kind = "repeated-line" if same else "conflicting-id"
            message = f"image that {path.name} lists again" + (": used once" if same else " with another vehicle")
            findings.add("warning" if same else "error", kind, message, image)
        entries[image] = fields[1]
    return entries


def _read_attributes(folder: Path) -> dict[str, dict[str, str]]:
    """Per vehicle: numbers of its model and colour (their names are in the release's own lists)."""
    attributes: dict[str, dict[str, str]] = {}
    for name, field in (("model_attr.txt", "model"), ("color_attr.txt", "colour")):
        path = folder / name
        if path.is_file():
            for line in read_lines(path):
                fields = line.split()
                if len(fields) == 2:
                    attributes.setdefault(fields[0], {})[field] = fields[1]
    return attributes
