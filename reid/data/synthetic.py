"""A synthetic vehicle data set in VeRi-776's raw layout, for demonstrations and tests without the licensed photographs.

Parametric vehicles in groups of near-duplicates pass several road cameras; keypoints, masks and orientations are exact.
`synthetic_images` draws, this module lays out files so that the reader of VeRi-776 reads them.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2

from reid.data.synthetic_images import (
    SyntheticConfig,
    SyntheticImage,
    build_vehicle,
    cameras_of,
    draw_vehicle_image,
    random_stream,
)
from reid.data.synthetic_styles import COLOUR_NAMES, TYPE_NAMES, TYPE_NUMBERS
from reid.progress import Progress

__all__ = ["SyntheticConfig", "SyntheticImage", "draw_vehicle_image", "write_synthetic_veri", "written_config"]

CONFIG_FILE: Final = "synthetic.json"
"""Beside the images: the configuration they were drawn with."""

_FRAMES_BETWEEN_SHOTS: Final = 5
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Shot:
    """One image that is to be drawn."""

    identity: int
    camera: int
    number: int
    name: str
    """File name without ending."""

    @property
    def track(self) -> tuple[int, int]:
        return self.identity, self.camera


def write_synthetic_veri(root: str | Path, config: SyntheticConfig, progress: Progress | None = None) -> Path:
    """The folder of a complete synthetic data set in VeRi-776's raw layout.

    Differs from the release: masks as PNG in `mask_train/`, `mask_query/` and `mask_test/`, keypoints with one decimal,
    `keypoint_*.txt` beside the images, and `synthetic.json` with the configuration. As in the release the queries (one
    image of each vehicle and camera) are gallery images too. Everything is written beside `root` and renamed at the
    end: a folder of that name is complete.

    Args:
        root: the folder to make, absent or empty.
        config: what to draw.
        progress: called after every image.

    Raises:
        ValueError: `root` holds files already.
    """
    folder = Path(root)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: give a new folder for the synthetic data set, or delete this one")
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    train = _plan(config, range(1, config.num_train_identities + 1))
    test = _plan(config, range(config.num_train_identities + 1, config.num_identities + 1))
    queries = _choose_queries(config, test)
    total, done = len(train) + len(test), 0
    for shots, split, label in ((train, "train", "train"), (test, "test", "test")):
        for kind in ("image", "mask"):
            (partial / f"{kind}_{split}").mkdir()
        lines = []
        for shot in shots:
            drawn = draw_vehicle_image(config, shot.identity, shot.camera, shot.number)
            _write_image(partial, split, shot.name, drawn)
            lines.append(_keypoint_line(f"VeRi/image_{split}/{shot.name}.jpg", drawn))
            done += 1
            if progress is not None:
                progress(done, total)
        _write_lines(partial / f"keypoint_{label}.txt", lines)
        _write_lines(partial / f"name_{split}.txt", [f"{shot.name}.jpg" for shot in shots])
        _write_labels(partial / f"{label}_label.xml", config, shots)
    for kind, ending in (("image", "jpg"), ("mask", "png")):
        (partial / f"{kind}_query").mkdir()
        for shot in queries:
            name = f"{shot.name}.{ending}"
            shutil.copyfile(partial / f"{kind}_test" / name, partial / f"{kind}_query" / name)
    _write_lines(partial / "name_query.txt", [f"{shot.name}.jpg" for shot in queries])
    _write_protocol(partial, test, queries)
    _write_lines(partial / "list_color.txt", [f"{number} {name}" for number, name in enumerate(COLOUR_NAMES, 1)])
    _write_lines(partial / "list_type.txt", [f"{number} {name}" for number, name in enumerate(TYPE_NAMES, 1)])
    (partial / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    _logger.info(
        "%s: %d images = %d train + %d gallery, %d of them queries too; %d + %d identities, %d cameras",
        folder, total, len(train), len(test), len(queries), config.num_train_identities, config.num_test_identities,
        config.num_cameras,
    )  # fmt: skip
    return folder


def written_config(root: str | Path) -> SyntheticConfig | None:
    """The configuration of a complete synthetic data set, None when the folder is none.

    Raises:
        ValueError: the configuration is of another version of this program.
    """
    path = Path(root) / CONFIG_FILE
    if not path.is_file():
        return None
    return SyntheticConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))


def _plan(config: SyntheticConfig, identities: range) -> list[_Shot]:
    """All images of some identities, ordered by name."""
    shots = []
    for identity in identities:
        for camera in cameras_of(config, identity):
            start = int(random_stream(config, "track", identity, camera, 1).integers(1_000, 90_000))
            for number in range(config.images_per_camera):
                time = start + _FRAMES_BETWEEN_SHOTS * number
                shots.append(_Shot(identity, camera, number, f"{identity:04d}_c{camera:03d}_{time:08d}_{number}"))
    return shots


def _choose_queries(config: SyntheticConfig, test: Sequence[_Shot]) -> list[_Shot]:
    """One image of every track."""
    tracks: dict[tuple[int, int], list[_Shot]] = defaultdict(list)
    for shot in test:
        tracks[shot.track].append(shot)
    return [
        shots[int(random_stream(config, "track", *track, 2).integers(len(shots)))] for track, shots in tracks.items()
    ]


def _write_image(folder: Path, split: str, name: str, drawn: SyntheticImage) -> None:
    flags = [cv2.IMWRITE_JPEG_QUALITY, drawn.jpeg_quality]
    image = cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR)
    for path, picture, options in (
        (folder / f"image_{split}" / f"{name}.jpg", image, flags),
        (folder / f"mask_{split}" / f"{name}.png", drawn.mask, [cv2.IMWRITE_PNG_BILEVEL, 1]),
    ):
        done, data = cv2.imencode(path.suffix, picture, options)
        assert done
        path.write_bytes(data.tobytes())


def _keypoint_line(path: str, drawn: SyntheticImage) -> str:
    fields = [path]
    for x, y, visible in drawn.keypoints.tolist():
        fields.append(f"{max(x, 0.0):.1f} {max(y, 0.0):.1f}" if visible else "-1 -1")
    return " ".join([*fields, str(drawn.orientation)])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _write_labels(path: Path, config: SyntheticConfig, shots: Sequence[_Shot]) -> None:
    title = "TrainingImages" if path.name.startswith("train") else "TestImages"
    lines = ['<?xml version="1.0" encoding="gb2312"?>', f'<{title} Version="1.0">', f'<Items number="{len(shots)}">']
    for shot in shots:
        style = build_vehicle(config, shot.identity).style
        lines.append(
            f'<Item imageName="{shot.name}.jpg" vehicleID="{shot.identity:04d}" cameraID="c{shot.camera:03d}" '
            f'colorID="{style.colour_number}" typeID="{TYPE_NUMBERS[style.shape.kind]}" />'
        )
    _write_lines(path, [*lines, "</Items>", f"</{title}>"])


def _write_protocol(folder: Path, test: Sequence[_Shot], queries: Sequence[_Shot]) -> None:
    """Tracks of the gallery, and for each query the 1-based gallery positions of its positives and of its junk."""
    tracks: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position, shot in enumerate(test, 1):
        tracks[shot.track].append(position)
    positives, junk = [], []
    for query in queries:
        same = {track: positions for track, positions in tracks.items() if track[0] == query.identity}
        junk.append(" ".join(map(str, same.pop(query.track))))
        positives.append(" ".join(str(position) for positions in same.values() for position in positions))
    _write_lines(folder / "gt_index.txt", positives)
    _write_lines(folder / "jk_index.txt", junk)
    names = [" ".join(f"{test[position - 1].name}.jpg" for position in positions) for positions in tracks.values()]
    _write_lines(folder / "test_track.txt", names)
