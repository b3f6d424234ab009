"""Any data set as a CSV or Parquet table: one image a row.

Columns: `path, vehicle_id, split`, optionally `camera_id, timestamp, orientation, mask_path, key, subsets` and
`x1, y1, ... x20, y20`; every other column is carried along as an attribute. Paths are relative to the table. A
negative vehicle_id (-1) says that nobody knows which vehicle it is: such images are left out of gallery and test, where
they would be junk, and refused in train and query. A negative camera_id is an unknown camera.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, get_args

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from reid.contracts import Record, Split
from reid.data.layout import IMAGE_ENDINGS, list_images, read_text
from reid.data.survey import KEY_PATTERN, Findings, Survey, readable_records
from reid.keypoints import NUM_KEYPOINTS, ORIENTATION_NAMES

REQUIRED_COLUMNS: Final = ("path", "vehicle_id", "split")
OPTIONAL_COLUMNS: Final = ("camera_id", "timestamp", "orientation", "mask_path", "key", "subsets")
KEYPOINT_COLUMNS: Final = tuple(f"{axis}{number}" for number in range(1, NUM_KEYPOINTS + 1) for axis in "xy")
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

NEGATIVE: Final = re.compile(r"-\d+(\.0*)?")
"""What people write for a vehicle or a camera that nobody knows."""

Row = Mapping[str, str]
"""Column -> text, "" where the table has nothing."""


def read_table(path: str | Path) -> list[Record]:
    """The records of a CSV (`.csv`, comma or semicolon or tab) or Parquet (`.parquet`) table.

    Args:
        path: The table, or a folder that holds exactly one.

    Raises:
        ValueError: no such table, columns missing, or rows that cannot be used (all of them).
    """
    return readable_records(survey_table(path))


def survey_table(path: str | Path) -> Survey:
    """The same records together with everything odd about them; see `read_table`."""
    table = _find_table(Path(path).expanduser())
    columns, rows = _read_parquet(table) if table.suffix.lower() == ".parquet" else _read_csv(table)
    has_keypoints = _check_columns(table, columns)
    findings = Findings()
    if "camera_id" not in columns:
        findings.add("note", "no-camera", "table without a camera_id column: scored without junk removal")
    keys = _keys(rows)
    extra = [column for column in columns if column not in {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, *KEYPOINT_COLUMNS}]
    listings: dict[Path, dict[str, Path]] = {}
    records: list[Record] = []
    for number, (row, key) in enumerate(zip(rows, keys, strict=True), start=1):
        place = f"row {number}: {row['path']}"
        path = table.parent / _with_slashes(row["path"])
        image = _existing(path, listings) if row["path"] else None
        split = next((split for split in SPLITS if split == row["split"].lower()), None)
        mask = _existing(table.parent / _with_slashes(row["mask_path"]), listings) if row.get("mask_path") else None
        if split is None:
            message = (
                f"row whose split is not one of {', '.join(SPLITS)}: {row['split']!r}{_guess(row['split'], SPLITS)}"
            )
            findings.add("error", "unknown-split", message, place)
        if not row["vehicle_id"]:
            findings.add("error", "no-identity", "row without a vehicle_id: fill or delete it", place)
        unknown = NEGATIVE.fullmatch(row["vehicle_id"]) is not None
        if unknown and split in ("gallery", "test"):
            findings.add(
                "note", "junk-image", f"{split} image of no known vehicle (negative vehicle_id): left out", place
            )
            continue
        if unknown:
            message = "row of no known vehicle (negative vehicle_id) outside gallery and test: mend or delete it"
            findings.add("error", "junk-image", message, place)
        if image is None and path.is_file():
            message = f"row whose file is no image that is read ({', '.join(sorted(IMAGE_ENDINGS))}): convert it"
            findings.add("error", "unsupported-ending", message, place)
        elif image is None:
            findings.add(
                "error", "missing-image", "row whose image does not exist (paths are relative to the table)", place
            )
        if row.get("mask_path") and mask is None:
            findings.add("warning", "mask-missing", "row whose mask does not exist: used without", place)
        if not KEY_PATTERN.fullmatch(key):
            message = "row whose key is not 1 to 128 of letters, digits, - and _: mend it"
            findings.add("error", "unparsed-name", message, f"row {number}: {key!r}")
        if split is None or not row["vehicle_id"] or unknown or image is None or not KEY_PATTERN.fullmatch(key):
            continue
        records.append(
            Record(
                key=key,
                path=image,
                split=split,
                vehicle_id=row["vehicle_id"],
                camera_id=_camera(row.get("camera_id", ""), place, findings),
                timestamp=row.get("timestamp") or None,
                keypoints=_keypoints(row, place, findings) if has_keypoints else None,
                orientation=_orientation(row.get("orientation", ""), place, findings),
                subsets=tuple(re.findall(r"[^\s,;|]+", row.get("subsets", ""))),
                attributes={column: row[column] for column in extra if row[column]},
                mask_path=mask,
            )
        )
    return Survey(data_set="table", root=table, records=records, findings=findings.all())


def _find_table(given: Path) -> Path:
    if given.is_dir():
        tables = sorted(path for path in given.iterdir() if path.suffix.lower() in (".csv", ".parquet"))
        if len(tables) != 1:
            names = ", ".join(path.name for path in tables) or "none"
            raise ValueError(f"expected one .csv or .parquet table in {given}, found {names}; give the table itself")
        return tables[0]
    if not given.is_file() or given.suffix.lower() not in (".csv", ".parquet"):
        state = "is neither" if given.is_file() else "does not exist"
        raise ValueError(
            f"expected a .csv or .parquet table with columns {', '.join(REQUIRED_COLUMNS)}; {given} {state}"
        )
    return given


def _read_csv(path: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows; the separator is the one of comma, semicolon and tab that the header has most of."""
    text = read_text(path)
    header = text.lstrip().split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    lines = [line for line in csv.reader(io.StringIO(text), delimiter=separator) if any(cell.strip() for cell in line)]
    columns = [column.strip() for column in lines[0]] if lines else []
    ragged = [number for number, line in enumerate(lines[1:], start=1) if len(line) != len(columns)]
    if ragged:
        raise ValueError(
            f"{path}: the header has {len(columns)} columns, row {ragged[0]} has {len(lines[ragged[0]])} "
            f"({len(ragged)} such rows); quote cells that hold {separator!r}"
        )
    return columns, [dict(zip(columns, (cell.strip() for cell in line), strict=True)) for line in lines[1:]]


def _read_parquet(path: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows as text: 12.0 becomes 12 (pandas makes floats of whole numbers with gaps), null becomes ""."""
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from None
    columns = [str(name) for name in table.column_names]
    texts = [[_text(value) for value in table.column(index).to_pylist()] for index in range(len(columns))]
    return columns, [dict(zip(columns, cells, strict=True)) for cells in zip(*texts, strict=True)]


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return str(value).strip()


def _check_columns(path: Path, columns: Sequence[str]) -> bool:
    """Refuses missing or repeated columns; True when the 40 keypoint columns are there."""
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: columns {', '.join(repeated)} occur twice; rename or drop one")
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if missing:
        hints = "".join(_guess(column, columns) for column in missing)
        raise ValueError(f"{path}: expected columns {', '.join(missing)}, found {', '.join(columns) or 'none'}{hints}")
    given = [column for column in KEYPOINT_COLUMNS if column in columns]
    if given and len(given) < len(KEYPOINT_COLUMNS):
        absent = [column for column in KEYPOINT_COLUMNS if column not in columns]
        raise ValueError(f"{path}: has {len(given)} of the 40 keypoint columns, lacks {', '.join(absent)}")
    return bool(given)


def _guess(name: str, options: Sequence[str]) -> str:
    likely = difflib.get_close_matches(name.lower(), options, n=1)
    return f" (did you mean {likely[0]!r}?)" if likely else ""


def _existing(path: Path, listings: dict[Path, dict[str, Path]]) -> Path | None:
    """The file, looked up once a folder; None when it is not there or not an image."""
    if path.suffix.lower() not in IMAGE_ENDINGS:
        return None
    if path.parent not in listings:
        listings[path.parent] = list_images(path.parent) if path.parent.is_dir() else {}
    return listings[path.parent].get(path.name)


def _with_slashes(path: str) -> str:
    """A path as Windows writes it, as all systems read it."""
    return path.replace("\\", "/")


def _keys(rows: Sequence[Row]) -> list[str]:
    """A key for each row: its own, the file's stem, or, where stems are not unique in a split, the whole path."""
    if rows and "key" in rows[0]:
        return [row["key"] for row in rows]
    stems = [_as_key(PurePosixPath(_with_slashes(row["path"])).stem) for row in rows]
    uses = Counter((row["split"].lower(), stem) for row, stem in zip(rows, stems, strict=True))
    if all(count == 1 for count in uses.values()):
        return stems
    return [
        _as_key(str(PurePosixPath(_with_slashes(row["path"])).with_suffix(""))) if row["path"] else "" for row in rows
    ]


def _as_key(text: str) -> str:
    """Text as a key: other characters become `_`, with a hash when that or shortening might make two alike."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    if plain == text and len(plain) <= 128:
        return plain
    return f"{plain[-115:]}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _keypoints(row: Row, place: str, findings: Findings) -> NDArray[np.float32] | None:
    """(20, 3) points; None when the row has no point at all. Empty, NaN and -1 are invisible."""
    cells = [row[column] for column in KEYPOINT_COLUMNS]
    if not any(cells):
        return None
    try:
        pairs = np.array([float(cell) if cell else -1.0 for cell in cells], dtype=np.float32).reshape(NUM_KEYPOINTS, 2)
    except ValueError:
        findings.add("error", "keypoint-line", "row with keypoints that are not numbers: mend or empty them", place)
        return None
    visible = np.isfinite(pairs).all(axis=1) & (pairs != -1).all(axis=1)
    points = np.zeros((NUM_KEYPOINTS, 3), dtype=np.float32)
    points[visible, :2] = pairs[visible]
    points[:, 2] = visible
    return points


def _camera(text: str, place: str, findings: Findings) -> str | None:
    if NEGATIVE.fullmatch(text):
        findings.add("note", "unknown-camera", "row of unknown camera (negative camera_id): its junk stays", place)
        return None
    return text or None


def _orientation(text: str, place: str, findings: Findings) -> int | None:
    if text in ("", "-1"):
        return None
    if text.isdigit() and int(text) < len(ORIENTATION_NAMES):
        return int(text)
    if text in ORIENTATION_NAMES:
        return ORIENTATION_NAMES.index(text)
    message = f"row whose orientation is not 0..{len(ORIENTATION_NAMES) - 1}: taken as unknown"
    findings.add("warning", "orientation", message, place)
    return None
