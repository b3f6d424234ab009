"""What a shard set holds, in figures and hashes: the manifest.

One data set is one folder: `manifest.json`, `index.parquet`, `train-000000.tar`, `query-000000.tar` ... The manifest is
written last, so its presence means a complete set, and `Manifest.hash` names the content: the same photographs packed
with the same settings have the same hash on any machine, however many processes packed them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from pydantic import Field, ValidationError

from reid.contracts import Settings, Split

PACKED_SCHEMA: Final = 1
"""Of sets as packing writes them."""
ENRICHED_SCHEMA: Final = 2
"""Of sets that hold more than that: `Manifest.additions` and the optional columns of the index. A set is written in the
oldest schema that can say what it holds, so packing again gives the set and the hash that it always gave."""
MANIFEST_NAME: Final = "manifest.json"
INDEX_NAME: Final = "index.parquet"
SPLITS: Final[tuple[Split, ...]] = ("train", "query", "gallery", "test")


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


class Addition(Settings):
    """What one enrichment added to a set or replaced in it, and how."""

    name: str
    """Such as "coarse-masks"."""
    version: str
    """Of the algorithm and the libraries that shape its results, or the hash of the model."""
    settings: dict[str, Any]
    source_hash: str
    """`Manifest.hash` of the set before."""
    members: dict[str, int]
    """Images that were given each kind of thing, such as {"mask.png": 37781}."""
    problems: dict[str, int]
    """Images that were given a fallback or nothing, by the reason."""
    means: dict[str, float]
    """Over the images, of what was measured, such as {"foreground_share": 0.52}."""


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
    source: dict[str, Any] = Field(default_factory=dict)
    """Options of the reader that decided what is in the set, such as {"format": "veri776", "on_duplicate": "last"};
    empty, and not in the file, where the format alone does. What they led to is in the index, so they are outside the
    hash."""
    additions: tuple[Addition, ...] = ()
    """What was added after packing, in order; from schema 2 on."""
    hash: str = ""
    """SHA-256 of everything above except `source`, `index.size` and `index.sha256`, as canonical JSON."""
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
        content = self.fields_but("source", "hash", "plan_digest", "seal")
        content["index"] = {name: content["index"][name] for name in ("name", "content_sha256", "rows")}
        return _canonical_sha256(content)

    def file_seal(self) -> str:
        """The seal that belongs to all other fields, whatever `seal` says."""
        return _canonical_sha256(self.fields_but("seal"))

    def fields_but(self, *names: str) -> dict[str, Any]:
        """All fields that the file of this manifest has, as JSON values, without those named."""
        absent = {"additions"} if self.schema_version < ENRICHED_SCHEMA else set()
        if not self.source:
            absent.add("source")
        return self.model_dump(mode="json", exclude={*names, *absent})

    def sealed(self) -> Manifest:
        """The same manifest with its hash and its seal filled in."""
        hashed = self.model_copy(update={"hash": self.content_hash()})
        return hashed.model_copy(update={"seal": hashed.file_seal()})


def _canonical_sha256(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def manifest_to_json(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: sorted keys, indented, the same for the same content."""
    text = json.dumps(manifest.fields_but(), sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def manifest_from_json(data: bytes, source: str) -> Manifest:
    """The manifest in the bytes of `manifest.json`, checked against its own hash.

    Raises:
        ValueError: not a manifest, of another schema version, or changed after it was written; `source` is named.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not JSON ({error}): the shard set is damaged, pack or copy it again") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in {PACKED_SCHEMA, ENRICHED_SCHEMA}:
        raise ValueError(
            f"{source} has shard schema {version!r}, this program reads schema {PACKED_SCHEMA} and {ENRICHED_SCHEMA}"
        )
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
