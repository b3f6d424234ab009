"""VeRi-776 in its raw layout: folders of images whose names carry vehicle and camera, keypoint files beside them.

The 1,678 queries lie in `image_query/` and again, under the same names, in `image_test/`: they become records of two
splits. An image without a keypoint line stays in the data; other toolboxes drop 63 training and 2 test images silently.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from reid.contracts import Record, Split
from reid.data.keypoint_labels import KeypointLabels, OnDuplicate, survey_keypoint_files
from reid.data.layout import Layout, by_casefolded_name, find_root, list_images, read_lines, read_text
from reid.data.survey import KEY_PATTERN, Findings, PublishedCount, Survey, readable_records

LAYOUT: Final = Layout(
    data_set="VeRi-776",
    spellings=frozenset({"veri", "veri776", "veridataset", "veri776dataset", "veriwithplate", "veri776withplate"}),
    required=("image_train", "image_query", "image_test"),
    tree="""\
VeRi/                                  (also VeRi-776, veri, veri776 ...)
  image_train/0001_c001_00016450_0.jpg ...   37,778 images
  image_query/                                1,678 images
  image_test/                                11,579 images, the gallery
  name_train.txt name_query.txt name_test.txt   (optional)
  train_label.xml test_label.xml                (optional: colour and type)
  keypoint_train.txt keypoint_test.txt          (optional here, needed by PPT)""",
)

PUBLISHED: Final = (
    PublishedCount(split="train", images=37_778, identities=576),
    PublishedCount(split="query", images=1_678, identities=200),
    PublishedCount(split="gallery", images=11_579, identities=200),
)

FOLDERS: Final[Mapping[Split, str]] = {"train": "train", "query": "query", "gallery": "test"}
"""What the release calls each split, in `image_...`, `name_....txt` and our `mask_...`."""

NAME_PATTERN: Final = re.compile(r"(?P<vehicle>-1|\d+)_(?P<camera>[cC]\d+)(_(?P<time>\d+))?(_[A-Za-z0-9_-]+)?")
"""`0001_c001_00016450_0`: vehicle, camera, time stamp, index."""

KEYPOINT_FILES: Final = ("keypoint_train.txt", "keypoint_test.txt")
KEYPOINT_FOLDERS: Final = (".", "keypoints", "../keypoints", "../VehicleReIDKeyPointData")
"""Where the keypoint files are looked for, relative to the root."""


def read_veri776(
    root: str | Path, keypoints: str | Path | None = None, on_duplicate: OnDuplicate = "refuse"
) -> list[Record]:
    """Every image of VeRi-776: `train`, `query` and `gallery` records.

    Args:
        root: The folder with `image_train/`, its parent, or another spelling of it.
        keypoints: A keypoint file or the folder that holds `keypoint_train.txt` and `keypoint_test.txt`; None looks
            beside the images.
        on_duplicate: For an image annotated twice in different ways, see `read_keypoint_file`.

    Raises:
        ValueError: the folder is not found (shows the expected tree), or the data set has errors (all of them).
    """
    return readable_records(survey_veri776(root, keypoints, on_duplicate))


def survey_veri776(
    root: str | Path, keypoints: str | Path | None = None, on_duplicate: OnDuplicate = "refuse"
) -> Survey:
    """The same records together with everything odd about them; see `read_veri776`."""
    folder = find_root(root, LAYOUT)
    findings = Findings()
    labels = _find_labels(folder, keypoints, on_duplicate, findings)
    attributes = _read_attributes(folder, findings)
    records: list[Record] = []
    for split in FOLDERS:
        records += _read_split(folder, split, labels, attributes, findings)
    if labels is not None:
        add_unused_labels(labels, records, findings)
    return Survey(
        data_set=LAYOUT.data_set,
        root=folder,
        records=records,
        findings=findings.all(),
        published=PUBLISHED,
        keypoint_lines={} if labels is None else labels.lines,
    )


def _read_split(
    folder: Path,
    split: Split,
    labels: KeypointLabels | None,
    attributes: Mapping[str, Mapping[str, str]],
    findings: Findings,
) -> list[Record]:
    masks_folder = folder / f"mask_{FOLDERS[split]}"
    masks = list_images(masks_folder) if masks_folder.is_dir() else {}
    records: list[Record] = []
    for path in _listed_images(folder, split, findings):
        key = path.stem
        place = f"{path.parent.name}/{path.name}"
        parts = NAME_PATTERN.fullmatch(key)
        if parts is None or not KEY_PATTERN.fullmatch(key):
            message = (
                "image whose name does not say vehicle and camera like 0001_c001_00016450_0.jpg: rename or remove it"
            )
            findings.add("error", "unparsed-name", message, place)
            continue
        if parts["vehicle"] == "-1":
            findings.add("warning", "no-identity", "image of no known vehicle (-1): left out", place)
            continue
        label = None if labels is None else labels.find(key)
        if labels is not None and label is None:
            findings.add(
                "note", "keypoints-missing", f"{split} image without a keypoint line: kept, all invisible", key
            )
        if masks and f"{key}.png" not in masks:
            findings.add("warning", "mask-missing", f"{split} image without a mask in {masks_folder.name}/", place)
        camera = parts["camera"].lower()
        attribute = attributes.get(key, {})
        if (
            attribute.get("cameraID", camera) != camera
            or attribute.get("vehicleID", parts["vehicle"]) != parts["vehicle"]
        ):
            message = "image whose XML label contradicts its name: the name is used"
            findings.add("warning", "label-contradiction", message, place)
        records.append(
            Record(
                key=key,
                path=path,
                split=split,
                vehicle_id=parts["vehicle"],
                camera_id=camera,
                timestamp=parts["time"],
                keypoints=None if label is None else label[0],
                orientation=None if label is None else label[1],
                attributes={name: attribute[name] for name in ("colour", "type") if name in attribute},
                mask_path=masks.get(f"{key}.png"),
            )
        )
    return records


def _listed_images(folder: Path, split: Split, findings: Findings) -> list[Path]:
    """The images of a split in the order of its list, or sorted by name when there is no list."""
    images = list_images(folder / f"image_{FOLDERS[split]}")
    list_path = folder / f"name_{FOLDERS[split]}.txt"
    if not list_path.is_file():
        return list(images.values())
    folded = by_casefolded_name(images)
    listed: dict[Path, None] = {}
    for line in read_lines(list_path):
        name = re.split(r"[\\/]", line)[-1]
        path = folded.get(name.casefold())
        if path is None:
            message = f"image that {list_path.name} lists but image_{FOLDERS[split]}/ lacks: unpack the release again"
            findings.add("error", "missing-image", message, name)
        elif path in listed:
            findings.add("warning", "repeated-line", f"line that {list_path.name} repeats: used once", name)
        else:
            listed[path] = None
    for path in images.values():
        if path not in listed:
            message = f"image in image_{FOLDERS[split]}/ that {list_path.name} does not list: left out"
            findings.add("warning", "unlisted-image", message, path.name)
    return list(listed)


def _find_labels(
    folder: Path, keypoints: str | Path | None, on_duplicate: OnDuplicate, findings: Findings
) -> KeypointLabels | None:
    """The keypoint labels that were asked for, or that lie beside the images; their oddities go to `findings`."""
    if keypoints is not None:
        given = Path(keypoints).expanduser()
        paths = [given] if given.is_file() else [given / name for name in KEYPOINT_FILES if (given / name).is_file()]
        if not paths:
            raise ValueError(f"keypoints: expected a file, or a folder with {' or '.join(KEYPOINT_FILES)}, got {given}")
    else:
        paths = []
        for name in KEYPOINT_FILES:
            places = [folder / place / name for place in KEYPOINT_FOLDERS]
            paths += [path for path in places if path.is_file()][:1]
        if not paths:
            message = f"data set without {' and '.join(KEYPOINT_FILES)}: PPT's local branch has nothing to learn from"
            findings.add("warning", "no-keypoint-file", message)
            return None
    labels = survey_keypoint_files(paths, on_duplicate)
    findings.extend(labels.findings)
    return labels


def add_unused_labels(labels: KeypointLabels, records: list[Record], findings: Findings) -> None:
    """Notes keypoint lines whose image is in no split."""
    keys = {record.key for record in records}
    for name in labels.names:
        if name not in keys:
            findings.add("note", "keypoints-unused", "keypoint line of an image that the data set does not hold", name)


def _read_attributes(folder: Path, findings: Findings) -> dict[str, dict[str, str]]:
    """Per image stem: the XML labels ("vehicleID", "cameraID") and colour and type as words where the lists exist."""
    colours = _read_names(folder / "list_color.txt")
    types = _read_names(folder / "list_type.txt")
    attributes: dict[str, dict[str, str]] = {}
    for name in ("train_label.xml", "test_label.xml"):
        path = folder / name
        if not path.is_file():
            continue
        for item in _parse_items(path, findings):
            stem = item.get("imageName", "").rsplit(".", 1)[0]
            values = {field: item[field].strip() for field in ("vehicleID", "cameraID") if item.get(field)}
            for field, number, names in (("colour", item.get("colorID"), colours), ("type", item.get("typeID"), types)):
                if number and number != "0":  # 0 is a gap of the release (vehicles 3, 7 and 41)
                    values[field] = names.get(number, number)
            if "cameraID" in values:
                values["cameraID"] = values["cameraID"].lower()
            attributes[stem] = values
    return attributes


def _parse_items(path: Path, findings: Findings) -> list[dict[str, str]]:
    """The attributes of every `<Item/>`. The header says gb2312, which XML parsers refuse: it is cut off."""
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", read_text(path))
    try:
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ElementTree.ParseError("it declares a document type or entities")
        return [dict(item.attrib) for item in ElementTree.fromstring(text).iter("Item")]
    except ElementTree.ParseError as error:
        findings.add(
            "warning", "unreadable-xml", f"label file without usable XML ({error}): colour and type unknown", path.name
        )
        return []


def _read_names(path: Path) -> dict[str, str]:
    """`1 yellow` lines as {"1": "yellow"}; empty when the file is missing."""
    if not path.is_file():
        return {}
    pairs = (re.match(r"(\d+)[\s.:,;-]*(.+)", line) for line in read_lines(path))
    return {pair[1]: pair[2].strip() for pair in pairs if pair}
