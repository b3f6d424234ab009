"""The index of a shard set: where each image lies and what it shows, as columns, and as the bytes of a Parquet file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reid.contracts import Split
from reid.keypoints import NUM_KEYPOINTS

Strings = NDArray[np.object_]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """One image of the index: see `Index` for units."""

    key: str
    split: Split
    vehicle_id: str
    shard: int = 0
    image_offset: int = 0
    image_size: int = 0
    mask_offset: int = -1
    mask_size: int = -1
    width: int = 1
    height: int = 1
    camera_id: str = ""
    timestamp: str = ""
    keypoints: NDArray[np.float32] | None = None
    orientation: int = -1
    subsets: tuple[str, ...] = ()
    keypoint_scores: NDArray[np.float32] | None = None
    boxes: NDArray[np.float32] | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Index:
    """N images as columns of N entries; the row number is what plans, batches and embeddings call a sample.

    Columns that may be None are those of enriched sets; None: no image has anything there.
    """

    key: Strings
    split: Strings
    shard: NDArray[np.int32]
    """Number of the tar in `Manifest.shards`."""
    image_offset: NDArray[np.int64]
    """First byte of the image file inside the tar."""
    image_size: NDArray[np.int64]
    mask_offset: NDArray[np.int64]
    """-1 where there is no mask."""
    mask_size: NDArray[np.int64]
    """-1 where there is no mask."""
    width: NDArray[np.int32]
    """Of the stored image, pixels."""
    height: NDArray[np.int32]
    """Of the stored image, pixels."""
    vehicle_id: Strings
    label: NDArray[np.int64]
    """Class 0..C-1 of a training image, -1 in the other splits."""
    camera_id: Strings
    """Empty text when unknown."""
    timestamp: Strings
    """Empty text when unknown."""
    keypoints: NDArray[np.float32]
    """(N, 20, 3) x, y in pixels of the stored image and visibility 0/1; zeros when not annotated."""
    has_keypoints: NDArray[np.bool_]
    orientation: NDArray[np.int8]
    """-1 when unknown."""
    subsets: Strings
    """Of tuples of text; an empty one: in every subset."""
    keypoint_scores: NDArray[np.float32] | None = None
    """(N, 20) how sure the detector is of each keypoint; zeros where it was not asked."""
    boxes: NDArray[np.float32] | None = None
    """(N, K, 4) part boxes from top to bottom: left, top, right, bottom as shares 0..1 of the image's width and height
    (0 and 1 are its edges, not pixel centres); zeros where there are none."""
    flags: Strings | None = None
    """Of tuples of text: what enrichments noted about the image, such as "coarse-masks:foreground_small"."""

    def __len__(self) -> int:
        return len(self.key)

    def rows(self, split: Split, subset: str | None = None) -> NDArray[np.int64]:
        """Ascending rows of a split, or of one nested size of it.

        Raises:
            ValueError: `subset` is given but no image of the split names it.
        """
        rows = np.flatnonzero(self.split == split).astype(np.int64)
        if subset is None:
            return rows
        known = {name for row in rows for name in self.subsets[row]}
        if subset not in known:
            raise ValueError(f"no image of split {split!r} is in subset {subset!r}; known: {sorted(known) or 'none'}")
        return np.array([row for row in rows if not self.subsets[row] or subset in self.subsets[row]], dtype=np.int64)

    def row(self, number: int) -> IndexRow:
        """One image of the index."""
        columns = {name: values[number] for name, values in self.columns().items() if name != "label"}
        for name, value in columns.items():
            if isinstance(value, np.generic):
                columns[name] = value.item()
        if not columns.pop("has_keypoints"):
            columns["keypoints"] = None
        return IndexRow(**columns)

    def take(self, rows: NDArray[np.int64]) -> Index:
        """The index of some of the images."""
        return Index(**{name: values[rows] for name, values in self.columns().items()})

    def columns(self) -> dict[str, Any]:
        """The columns that the set has, by name."""
        found = {column.name: getattr(self, column.name) for column in fields(self)}
        return {name: values for name, values in found.items() if values is not None}

    def identity_codes(self) -> NDArray[np.int64]:
        """(N,) number of each image's vehicle in the sorted ids of all splits: same vehicle, same code."""
        return _codes(self.vehicle_id)

    def camera_codes(self) -> NDArray[np.int64]:
        """(N,) number of each image's camera in the sorted ids of all splits; -1 where unknown."""
        codes = np.full(len(self), -1, dtype=np.int64)
        known = self.camera_id != ""
        codes[known] = _codes(self.camera_id[known])
        return codes

    def content_sha256(self) -> str:
        """Hash of all columns' values, the same on every machine and with every Parquet version."""
        digest = hashlib.sha256()
        for name, values in self.columns().items():
            digest.update(f"{name}:{values.dtype.kind}:{len(values)};".encode())
            if values.dtype == object:
                digest.update(json.dumps(values.tolist(), separators=(",", ":")).encode())
            else:
                little_endian = values.astype(values.dtype.newbyteorder("<"), copy=False)
                digest.update(np.ascontiguousarray(little_endian).tobytes())
        return digest.hexdigest()


def _codes(values: Strings) -> NDArray[np.int64]:
    code = {value: number for number, value in enumerate(sorted(set(values.tolist())))}
    return np.array([code[value] for value in values.tolist()], dtype=np.int64)


def strings(values: Sequence[Any]) -> Strings:
    """An object array with one entry per value, tuples included."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def training_labels(split: Strings, vehicle_id: Strings) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The sorted vehicle ids of the training images, and (N,) the class of each image (-1 outside training)."""
    table = tuple(sorted(set(vehicle_id[split == "train"].tolist())))
    number = {vehicle: label for label, vehicle in enumerate(table)}
    pairs = zip(split.tolist(), vehicle_id.tolist(), strict=True)
    labels = [number[vehicle] if name == "train" else -1 for name, vehicle in pairs]
    return table, np.array(labels, dtype=np.int64)


def index_from_rows(rows: Sequence[IndexRow]) -> Index:
    """The index of rows in memory, labels included: for packing, and for tests that need an index without shards."""

    def integers(name: str, dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
        return np.array([getattr(row, name) for row in rows], dtype=dtype)

    split, vehicle_id = strings([row.split for row in rows]), strings([row.vehicle_id for row in rows])
    keypoints = np.zeros((len(rows), NUM_KEYPOINTS, 3), dtype=np.float32)
    for number, row in enumerate(rows):
        if row.keypoints is not None:
            keypoints[number] = row.keypoints
    scores = [row.keypoint_scores for row in rows]
    boxes = [row.boxes for row in rows]
    return Index(
        key=strings([row.key for row in rows]),
        split=split,
        shard=integers("shard", np.int32),
        image_offset=integers("image_offset", np.int64),
        image_size=integers("image_size", np.int64),
        mask_offset=integers("mask_offset", np.int64),
        mask_size=integers("mask_size", np.int64),
        width=integers("width", np.int32),
        height=integers("height", np.int32),
        vehicle_id=vehicle_id,
        label=training_labels(split, vehicle_id)[1],
        camera_id=strings([row.camera_id for row in rows]),
        timestamp=strings([row.timestamp for row in rows]),
        keypoints=keypoints,
        has_keypoints=np.array([row.keypoints is not None for row in rows], dtype=np.bool_),
        orientation=integers("orientation", np.int8),
        subsets=strings([tuple(row.subsets) for row in rows]),
        keypoint_scores=_optional_column(scores),
        boxes=_optional_column(boxes),
        flags=strings([row.flags for row in rows]) if any(row.flags for row in rows) else None,
    )


def _optional_column(values: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    """The values one below the other, zeros where there is none; None when there is none at all.

    Raises:
        ValueError: values of several shapes.
    """
    shapes = sorted({value.shape for value in values if value is not None})
    if not shapes:
        return None
    if len(shapes) > 1:
        raise ValueError(f"images have values of different shapes in one column: {shapes}")
    empty = np.zeros(shapes[0], dtype=np.float32)
    return np.stack([empty if value is None else value.astype(np.float32) for value in values])


def concatenate_indexes(parts: Sequence[Index]) -> Index:
    """One index of several, in order; labels are numbered anew over all of them."""
    if not parts:
        return index_from_rows([])
    names = {name: None for part in parts for name in part.columns()}
    columns = {name: np.concatenate([_column_or_empty(name, part, parts) for part in parts]) for name in names}
    columns["label"] = training_labels(columns["split"], columns["vehicle_id"])[1]
    return Index(**columns)


def _column_or_empty(name: str, part: Index, parts: Sequence[Index]) -> NDArray[Any]:
    """A column of one part; of empty values, shaped like those of the other parts, where it lacks an optional one."""
    values: NDArray[Any] | None = getattr(part, name)
    if values is not None:
        return values
    if name == "flags":
        return strings([()] * len(part))
    model = next(values for other in parts if (values := getattr(other, name)) is not None)
    return np.zeros((len(part), *model.shape[1:]), dtype=model.dtype)


def index_to_parquet(index: Index, notes: Mapping[str, str] | None = None) -> bytes:
    """The bytes of `index.parquet`; `notes` go into the file's metadata."""
    columns: dict[str, Any] = {}
    for name, values in index.columns().items():
        match name:
            case "keypoints" | "keypoint_scores" | "boxes":
                flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=pa.float32())
                columns[name] = pa.FixedSizeListArray.from_arrays(flat, math.prod(values.shape[1:]))
            case "subsets" | "flags":
                columns[name] = pa.array([list(names) for names in values], type=pa.list_(pa.string()))
            case _ if values.dtype == object:
                columns[name] = pa.array(values.tolist(), type=pa.string())
            case _:
                columns[name] = pa.array(values)
    table = pa.table(columns).replace_schema_metadata(dict(notes or {}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 20)
    return bytes(sink.getvalue())


def index_from_parquet(data: bytes, source: str) -> tuple[Index, dict[str, str]]:
    """The index in the bytes of `index.parquet`, and the notes in its metadata.

    Raises:
        ValueError: not Parquet, or a column is missing; `source` is named.
    """
    try:
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{source} is not a readable Parquet file ({error}): pack or copy the set again") from None
    known = [field.name for field in fields(Index)]
    missing = {field.name for field in fields(Index) if field.default is MISSING} - set(table.column_names)
    if missing:
        raise ValueError(f"{source} lacks the index columns {sorted(missing)}: it belongs to another program")
    columns: dict[str, Any] = {}
    for name in (name for name in known if name in table.column_names):
        column = table.column(name).combine_chunks()
        match name:
            case "keypoints" | "keypoint_scores" | "boxes":
                values = np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
                width = column.type.list_size
                shape = {"keypoints": (width // 3, 3), "keypoint_scores": (width,), "boxes": (width // 4, 4)}[name]
                columns[name] = values.reshape(len(column), *shape)
            case "subsets" | "flags":
                columns[name] = strings([tuple(names) for names in column.to_pylist()])
            case _ if pa.types.is_string(column.type):
                columns[name] = strings(column.to_pylist())
            case _:
                columns[name] = np.array(column.to_numpy(zero_copy_only=False))
    notes = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return Index(**columns), notes
