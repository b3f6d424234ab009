"""The "Vehicle Re-Identification Dataset" of road-camera photographs (Apache-2.0), cars to buses, two cameras each.

File names `TYPE_NUMBER_camN.jpg`; the identity is `TYPE_NUMBER`. `val.txt` is the test set: its images are records of
both `query` and `gallery`, so that each camera's images query the other's (an image is junk for itself).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import Field, model_validator

from reid.contracts import Record, Settings, Split
from reid.data.keypoint_labels import KeypointLabels, OnDuplicate, survey_keypoint_files
from reid.data.layout import Layout, by_casefolded_name, find_root, list_images, read_lines
from reid.data.survey import KEY_PATTERN, Findings, PublishedCount, Survey, readable_records
from reid.data.veri776 import add_unused_labels

LAYOUT: Final = Layout(
    data_set="real-vehicles",
    spellings=frozenset({"realvehicles", "vehiclereidentificationdataset"}),
    required=("images", "train.txt", "val.txt"),
    tree="""\
real-vehicles/
  images/car_0003_cam1.jpg ...         type, number, camera
  train.txt val.txt                    an image name a line
  keypoints.txt                        (optional) VeRi line format""",
)

PUBLISHED: Final = (
    PublishedCount(split="train", images=810, identities=405),
    PublishedCount(split="query", images=204, identities=102),
    PublishedCount(split="gallery", images=204, identities=102),
)

NAME_PATTERN: Final = re.compile(r"(?P<vehicle>(?P<type>[A-Za-z]+)_\d+)_(?P<camera>cam\d+)")

NUM_HELD_OUT: Final = 60
"""Vehicles held out unless `held_out` says otherwise."""


class RealVehiclesOptions(Settings):
    """Which vehicles of real-vehicles train and which are the test set."""

    train_split: Literal["train", "train+val-minus-held-out"] = "train"
    """train: the release's own lists. train+val-minus-held-out: a seeded draw from both lists is the test set, and
    every other vehicle trains."""
    held_out: int | None = Field(None, ge=2)
    """Vehicles to hold out, 60 when not given; only for train+val-minus-held-out."""
    seed: int | None = Field(None, ge=0)
    """Seed of that draw, 0 when not given; only for train+val-minus-held-out."""

    @property
    def resolved(self) -> RealVehiclesOptions:
        """The same, with what is not given as it takes effect."""
        if self.train_split == "train":
            return self
        held_out = NUM_HELD_OUT if self.held_out is None else self.held_out
        return self.model_copy(update={"held_out": held_out, "seed": self.seed or 0})

    @model_validator(mode="after")
    def _refuse_ignored(self) -> RealVehiclesOptions:
        if self.train_split == "train" and (self.held_out is not None or self.seed is not None):
            raise ValueError(
                "held_out and seed need train_split: train+val-minus-held-out (now train: they would do nothing)"
            )
        return self


def read_real_vehicles(
    root: str | Path,
    options: RealVehiclesOptions | None = None,
    keypoints: str | Path | None = None,
    on_duplicate: OnDuplicate = "refuse",
) -> list[Record]:
    """Every listed image: `train` records, and the test set as `query` and again as `gallery`.

    Args:
        root: The folder with `images/`, its parent, or another spelling of it.
        options: Which vehicles train; None follows `train.txt` and `val.txt`.
        keypoints: Another keypoint file than `keypoints.txt`.
        on_duplicate: For an image annotated twice in different ways, see `read_keypoint_file`.

    Raises:
        ValueError: the folder is not found (shows the expected tree), the data set has errors (all of them), or more
            vehicles are to be held out than leave two for training.
    """
    return readable_records(survey_real_vehicles(root, options, keypoints, on_duplicate))


def survey_real_vehicles(
    root: str | Path,
    options: RealVehiclesOptions | None = None,
    keypoints: str | Path | None = None,
    on_duplicate: OnDuplicate = "refuse",
) -> Survey:
    """The same records together with everything odd about them; see `read_real_vehicles`."""
    folder = find_root(root, LAYOUT)
    options = (options or RealVehiclesOptions()).resolved
    findings = Findings()
    labels_path = Path(keypoints).expanduser() if keypoints is not None else folder / "keypoints.txt"
    labels: KeypointLabels | None = None
    if keypoints is not None or labels_path.is_file():
        labels = survey_keypoint_files([labels_path], on_duplicate)
        findings.extend(labels.findings)
    else:
        findings.add("warning", "no-keypoint-file", "data set without keypoints.txt: PPT's local branch learns nothing")

    images = by_casefolded_name(list_images(folder / "images"))
    listed = {name: _read_list(folder / name, images, findings) for name in ("train.txt", "val.txt")}
    train, test = listed["train.txt"], listed["val.txt"]
    if options.train_split == "train+val-minus-held-out":
        assert options.held_out is not None, "resolved"
        assert options.seed is not None, "resolved"
        train, test = _hold_out(train | test, options.held_out, options.seed)
    splits: tuple[tuple[Split, dict[str, Path]], ...] = (("train", train), ("query", test), ("gallery", test))
    records = [
        _record(path, key, split, labels, findings) for split, entries in splits for key, path in entries.items()
    ]
    if labels is not None:
        add_unused_labels(labels, records, findings)
    return Survey(
        data_set=LAYOUT.data_set,
        root=folder,
        records=records,
        findings=findings.all(),
        published=PUBLISHED if options.train_split == "train" else (),
        keypoint_lines={} if labels is None else labels.lines,
    )


def _record(path: Path, key: str, split: Split, labels: KeypointLabels | None, findings: Findings) -> Record:
    parts = NAME_PATTERN.fullmatch(key)
    assert parts is not None, key
    label = None if labels is None else labels.find(key)
    if labels is not None and label is None:
        message = f"{split} image without a keypoint line: kept, all invisible"
        findings.add("note", "keypoints-missing", message, key)
    return Record(
        key=key,
        path=path,
        split=split,
        vehicle_id=parts["vehicle"],
        camera_id=parts["camera"],
        keypoints=None if label is None else label[0],
        orientation=None if label is None else label[1],
        attributes={"type": parts["type"]},
    )


def _read_list(path: Path, images: dict[str, Path], findings: Findings) -> dict[str, Path]:
    """Key -> file of the images that a list names."""
    listed: dict[str, Path] = {}
    for line in read_lines(path):
        name = re.split(r"[\\/]", line)[-1]
        image = images.get(name.casefold())
        if image is None:
            message = f"image that {path.name} lists but images/ lacks: unpack the release again"
            findings.add("error", "missing-image", message, name)
        elif not NAME_PATTERN.fullmatch(image.stem) or not KEY_PATTERN.fullmatch(image.stem):
            message = (
                "image whose name does not say type, number and camera like car_0003_cam1.jpg: rename or remove it"
            )
            findings.add("error", "unparsed-name", message, name)
        elif image.stem in listed:
            findings.add("warning", "repeated-line", f"line that {path.name} repeats: used once", name)
        else:
            listed[image.stem] = image
    return listed


def _hold_out(images: dict[str, Path], num_vehicles: int, seed: int) -> tuple[dict[str, Path], dict[str, Path]]:
    """Training and test images, the vehicles of the latter drawn with `seed` from all, sorted by name."""
    vehicle_of = {key: key.rsplit("_", 1)[0] for key in images}
    vehicles = sorted(set(vehicle_of.values()))
    if num_vehicles > len(vehicles) - 2:
        raise ValueError(
            f"held_out={num_vehicles} of {len(vehicles)} vehicles leaves fewer than 2 for training; hold out at most "
            f"{max(len(vehicles) - 2, 0)}"
        )
    drawn = np.random.default_rng(seed).permutation(len(vehicles))[:num_vehicles]
    test_vehicles = {vehicles[number] for number in drawn}
    train = {key: path for key, path in images.items() if vehicle_of[key] not in test_vehicles}
    test = {key: path for key, path in images.items() if vehicle_of[key] in test_vehicles}
    return train, test
