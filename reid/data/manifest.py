"""What a shard set holds: the manifest (counts, hashes, labels) and the index (where each image lies, what it shows).

One data set is one folder: `manifest.json`, `index.parquet`, `train-000000.tar`, `query-000000.tar` ... The manifest is
written last, so its presence means a complete set, and `Manifest.hash` names the content: the same photographs packed
with the same settings have the same hash on any machine, however many processes packed them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from reid.contracts import Settings, Split
from reid.keypoints import NUM_KEYPOINTS

SCHEMA_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"
INDEX_NAME: Final = "index.parquet"
SPLITS: Final[tuple[Split, ...]] = ("train", "query", "gallery", "test")

Strings = NDArray[np.object_]


class ShardInfo(Settings):
    """One tar file of the set."""

    name: str
    """File name inside the data set's folder."""
    split: Split
    size: int
    """Bytes."""
    sha256: str
    """Of the file, hexadecimal."""
    count: int
    """Images."""


class IndexInfo(Settings):
    """The index file."""

    name: str = INDEX_NAME
    size: int
    """Bytes."""
    sha256: str
    """Of the file; depends on the Parquet writer's version, so it is outside the manifest's hash."""
    content_sha256: str
    """Of the columns' values (`Index.content_sha256`)."""
    rows: int


class SkippedSample(Settings):
    """An image of the source that is not in the shards, and why."""

    split: Split
    key: str
    reason: str


class Manifest(Settings):
    """The whole set in figures and hashes."""

    schema_version: int
    name: str
    """Name of the data set, for people."""
    source_counts: dict[str, int]
    """Images by split that the reader listed."""
    counts: dict[str, int]
    """Images by split in the shards."""
    identities: dict[str, int]
    """Vehicles by split in the shards."""
    skipped: dict[str, int]
    """Images left out, by reason."""
    skipped_samples: tuple[SkippedSample, ...]
    """Each of them, by split and key."""
    repairs: dict[str, int]
    """What was put right or tolerated, by kind, such as "mismatched_extension" or "keypoints_outside"."""
    labels: tuple[str, ...]
    """Vehicle ids of the training split, sorted; the position is the class label."""
    num_classes: int
    shards: tuple[ShardInfo, ...]
    """In the numbering of `Index.shard`."""
    index: IndexInfo
    packing: dict[str, Any]
    """The settings that shaped the content."""
    hash: str = ""
    """SHA-256 of everything above except `index.size` and `index.sha256`, as canonical JSON."""
    plan_digest: str = ""
    """Of the packing plan, raw files' paths and times included: tells that packing again would change nothing."""
    seal: str = ""
    """SHA-256 of all other fields, `hash` included: finds damage to the few that are not part of the content."""

    @property
    def num_images(self) -> int:
        """Images over all splits."""
        return sum(self.counts.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    def content_hash(self) -> str:
        """The hash that belongs to the content, whatever `hash` says."""
        content = self.model_dump(mode="json", exclude={"hash", "plan_digest", "seal"})
        content["index"] = {name: content["index"][name] for name in ("name", "content_sha256", "rows")}
        return _canonical_sha256(content)

    def file_seal(self) -> str:
        """The seal that belongs to all other fields, whatever `seal` says."""
        return _canonical_sha256(self.model_dump(mode="json", exclude={"seal"}))

    def sealed(self) -> Manifest:
        """The same manifest with its hash and its seal filled in."""
        hashed = self.model_copy(update={"hash": self.content_hash()})
        return hashed.model_copy(update={"seal": hashed.file_seal()})


def _canonical_sha256(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def manifest_to_json(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: sorted keys, indented, the same for the same content."""
    text = json.dumps(manifest.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def manifest_from_json(data: bytes, source: str) -> Manifest:
    """The manifest in the bytes of `manifest.json`, checked against its own hash.

    Raises:
        ValueError: not a manifest, of another schema version, or changed after it was written; `source` is named.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error}): the shard set is damaged, pack or copy it again") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{source} has shard schema {version!r}, this program reads schema {SCHEMA_VERSION}")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
        raise ValueError(f"{source} is not a shard manifest: {problems}") from None
    if (manifest.hash, manifest.seal) != (manifest.content_hash(), manifest.file_seal()):
        raise ValueError(
            f"{source} was changed after it was written: its content hashes to {manifest.content_hash()[:16]}..., it"
            f" says {manifest.hash[:16]!r} under the seal {manifest.seal[:16]!r}: pack or copy the set again"
        )
    if data != manifest_to_json(manifest):
        raise ValueError(f"{source} was written by another program or changed: pack or copy the set again")
    return manifest


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Index:
    """N images as columns of N entries; the row number is what plans, batches and embeddings call a sample."""

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
        for column in fields(self):
            values = getattr(self, column.name)
            digest.update(f"{column.name}:{values.dtype.kind}:{len(values)};".encode())
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
    )


def concatenate_indexes(parts: Sequence[Index]) -> Index:
    """One index of several, in order; labels are numbered anew over all of them."""
    if not parts:
        return index_from_rows([])
    columns = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Index)}
    columns["label"] = training_labels(columns["split"], columns["vehicle_id"])[1]
    return Index(**columns)


def index_to_parquet(index: Index, notes: Mapping[str, str] | None = None) -> bytes:
    """The bytes of `index.parquet`; `notes` go into the file's metadata."""
    columns: dict[str, Any] = {}
    for field in fields(index):
        values = getattr(index, field.name)
        match field.name:
            case "keypoints":
                flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=pa.float32())
                columns[field.name] = pa.FixedSizeListArray.from_arrays(flat, NUM_KEYPOINTS * 3)
            case "subsets":
                columns[field.name] = pa.array([list(names) for names in values], type=pa.list_(pa.string()))
            case _ if values.dtype == object:
                columns[field.name] = pa.array(values.tolist(), type=pa.string())
            case _:
                columns[field.name] = pa.array(values)
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
    missing = {field.name for field in fields(Index)} - set(table.column_names)
    if missing:
        raise ValueError(f"{source} lacks the index columns {sorted(missing)}: it belongs to another program")
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(Index)):
        column = table.column(name).combine_chunks()
        match name:
            case "keypoints":
                values = column.flatten().to_numpy(zero_copy_only=False)
                columns[name] = np.array(values, dtype=np.float32).reshape(-1, NUM_KEYPOINTS, 3)
            case "subsets":
                columns[name] = strings([tuple(names) for names in column.to_pylist()])
            case _ if pa.types.is_string(column.type):
                columns[name] = strings(column.to_pylist())
            case _:
                columns[name] = np.array(column.to_numpy(zero_copy_only=False))
    notes = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return Index(**columns), notes
