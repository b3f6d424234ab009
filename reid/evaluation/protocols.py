"""Which images query which gallery: the benchmarks' protocols by name, drawn from the columns of the index.

`veri776`, `veriwild-{small,medium,large}` and their `-raw` variants (nothing removed),
`vehicleid-{small,medium,large}`, `cross-camera` (each camera's queries against the others' gallery) and `table` (any
data set).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, field_validator

from reid.contracts import Settings, Split
from reid.evaluation.rerank_config import RerankConfig

Int64Array = NDArray[np.int64]

_SIZES: Final = ("small", "medium", "large")
PROTOCOLS: Final[tuple[str, ...]] = (
    "table",
    "veri776",
    "veri776-raw",
    "cross-camera",
    *(f"vehicleid-{size}" for size in _SIZES),
    *(f"veriwild-{size}{raw}" for size in _SIZES for raw in ("", "-raw")),
)


def check_protocol(name: str) -> str:
    """The name, if there is such a protocol.

    Raises:
        ValueError: With the nearest known name.
    """
    if name in PROTOCOLS:
        return name
    nearest = difflib.get_close_matches(name.lower().replace("_", "-"), PROTOCOLS, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"expected a protocol out of {', '.join(PROTOCOLS)}; got {name!r}{hint}")


class EvaluationConfig(Settings):
    """How a checkpoint is evaluated and shown."""

    protocol: str = "veri776"
    """Name: table, veri776, cross-camera, vehicleid-small ..., veriwild-small ... (with -raw: no junk removal)."""
    every_epochs: int = Field(10, ge=1)
    """A checkpoint is evaluated after each so many epochs; the last one always is."""
    batch_size: int = Field(128, ge=1)
    """Images embedded at once."""
    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the network while embedding; distances are float32 always."""
    flip: bool = False
    """Average the features of each image and its mirror image (twice the time)."""
    partial_tasks: bool = False
    """PMANet only: h joins f_g and g in the retrieval feature, which takes masks and boxes of test images. False: the
    paper's PMANet with a small circle, which needs no PANet at test time."""
    retrieval_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """PMANet only: weights of the cosine distances of f_g, g and h; only their ratios count, and those of features that
    are not there fall away. null: exp(-log variance) of the three, or 1 each when no log variances are learned."""
    memory_budget_mb: int = Field(1024, ge=64)
    """Megabytes (2**20 bytes) for blocks of distances and their ranking, beside the features themselves."""
    trapezoid_ap: bool = False
    """Also give VeRi's official trapezoid mAP, as a second figure."""
    trials: int = Field(10, ge=1)
    """Random galleries drawn by the vehicleid protocols (the benchmark's number is 10); no other protocol uses it."""
    rerank: RerankConfig | None = None
    """Also give figures after re-ranking, beside those without; null: only those without."""
    num_rank_lists: int = Field(12, ge=0)
    """Queries shown in the report: of the easiest, the median and the hardest third, of different vehicles."""
    rank_list_length: int = Field(10, ge=1, le=50)
    """Gallery images shown for each of them."""

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, name: str) -> str:
        return check_protocol(name)


class IndexColumns(Protocol):
    """What a protocol needs of the index."""

    @property
    def key(self) -> NDArray[np.object_]:
        """(N,) names of the images, each once within its split."""

    @property
    def vehicle_id(self) -> NDArray[np.object_]:
        """(N,) identities as text."""

    @property
    def camera_id(self) -> NDArray[np.object_]:
        """(N,) cameras as text; empty when unknown."""

    def rows(self, split: Split, subset: str | None = None) -> Int64Array:
        """Ascending rows of a split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One set of queries against one gallery."""

    name: str
    query_rows: Int64Array
    """Rows of the index."""
    gallery_rows: Int64Array
    remove_junk: bool
    """Whether entries with the query's identity and camera are taken out."""
    is_drawn: bool = False
    """The gallery was drawn at random: its rows belong into the result."""


def protocol_trials(name: str, index: IndexColumns, num_trials: int = 10) -> list[Trial]:
    """The trials of a protocol; all but vehicleid and cross-camera have exactly one.

    Args:
        name: One of `PROTOCOLS`.
        index: Columns of the data set.
        num_trials: Galleries drawn by the vehicleid protocols, with the seeds 0, 1, 2 ...

    Raises:
        ValueError: For an unknown protocol, or when the data set has no images for it.
    """
    check_protocol(name)
    family, _, rest = name.partition("-")
    match family:
        case "vehicleid":
            rows = _rows(index, "test", rest, name)
            return [_draw_gallery(index, rows, seed) for seed in range(num_trials)]
        case "veriwild":
            size, _, raw = rest.partition("-")
            query, gallery = _rows(index, "query", size, name), _rows(index, "gallery", size, name)
            return [Trial(name=size, query_rows=query, gallery_rows=gallery, remove_junk=not raw)]
        case "cross":
            return _cross_camera(index, name)
        case _:
            query, gallery = _rows(index, "query", None, name), _rows(index, "gallery", None, name)
            return [Trial(name="all", query_rows=query, gallery_rows=gallery, remove_junk=rest != "raw")]


def rows_of_trials(trials: list[Trial]) -> Int64Array:
    """Ascending rows that need a feature, each once."""
    return np.unique(np.concatenate([rows for trial in trials for rows in (trial.query_rows, trial.gallery_rows)]))


def check_positives(name: str, trials: list[Trial], identities: Int64Array, cameras: Int64Array) -> None:
    """Refuse trials that nothing could be found in.

    Args:
        name: The protocol.
        trials: Its trials.
        identities: (N,) of each row of the index, the same number for the same vehicle.
        cameras: (N,) the same number for the same camera, -1 where unknown.

    Raises:
        ValueError: No query of a trial has a positive in its gallery, of another camera where junk is removed.
    """
    for trial in trials:
        query, gallery = trial.query_rows, trial.gallery_rows
        positives = _counts(identities[gallery], identities[query])
        if trial.remove_junk:
            views = identities * (int(cameras.max(initial=0)) + 2) + cameras + 1
            positives -= np.where(cameras[query] >= 0, _counts(views[gallery], views[query]), 0)
        if not np.any(positives > 0):
            seen = " seen by another camera" if trial.remove_junk else ""
            raise ValueError(
                f"protocol {name!r} (trial {trial.name!r}): none of {len(query):,} queries has an image of its vehicle"
                f"{seen} among {len(gallery):,} gallery images; choose the protocol of this data set or pack it with"
                " queries and gallery of the same vehicles"
            )


def _counts(values: Int64Array, wanted: Int64Array) -> Int64Array:
    """How often each wanted value is among the values."""
    ordered = np.sort(values)
    counts: Int64Array = np.searchsorted(ordered, wanted, "right") - np.searchsorted(ordered, wanted, "left")
    return counts


def protocol_notes(trials: list[Trial], index: IndexColumns) -> list[str]:
    """What a reader of the figures must know about the data: missing cameras, queries that find themselves."""
    return [*_self_matches(trials, index), *_missing_cameras(trials, index)]


def _self_matches(trials: list[Trial], index: IndexColumns) -> list[str]:
    """Queries that are gallery images too and are not taken out with the junk."""
    found: set[int] = set()
    for trial in trials:
        stays = trial.query_rows
        if trial.remove_junk:
            stays = stays[index.camera_id[stays] == ""]
        names = {(index.vehicle_id[row], index.key[row]) for row in trial.gallery_rows} if len(stays) else set()
        found.update(row for row in stays.tolist() if (index.vehicle_id[row], index.key[row]) in names)
    if not found:
        return []
    return [f"{len(found):,} queries have the key of a gallery image of their vehicle: they likely find themselves"]


def _missing_cameras(trials: list[Trial], index: IndexColumns) -> list[str]:
    if not any(trial.remove_junk for trial in trials):
        return []
    queries = np.unique(np.concatenate([trial.query_rows for trial in trials]))
    num_unknown = int(np.count_nonzero(index.camera_id[queries] == ""))
    if num_unknown == 0:
        return []
    if num_unknown == len(queries):
        return ["camera unknown: scored without junk removal"]
    return [f"camera unknown for {num_unknown:,} of {len(queries):,} queries: no junk removed for these"]


def _rows(index: IndexColumns, split: Split, subset: str | None, protocol: str) -> Int64Array:
    try:
        rows = index.rows(split, subset)
    except ValueError as error:
        raise ValueError(f"protocol {protocol!r}: {error}") from None
    if len(rows) == 0:
        where = f"split {split!r}" + (f", subset {subset!r}" if subset else "")
        raise ValueError(
            f"protocol {protocol!r} needs images in {where}, the data set has none; "
            "choose the protocol of this data set or pack it with that split"
        )
    return rows


def _draw_gallery(index: IndexColumns, rows: Int64Array, seed: int) -> Trial:
    """One random image per identity is the gallery, all the rest are queries (VehicleID).

    Some toolboxes have it the other way round. Identities in the order of their names and images in the order of the
    index, so that the draw depends on nothing but the data set and the seed.
    """
    generator = np.random.default_rng(seed)
    names = index.vehicle_id[rows].astype(str)
    order = np.argsort(names, kind="stable")
    _, starts, counts = np.unique(names[order], return_index=True, return_counts=True)
    drawn = order[starts + generator.integers(0, counts)]
    is_gallery = np.zeros(len(rows), np.bool_)
    is_gallery[drawn] = True
    return Trial(
        name=f"seed {seed}",
        query_rows=rows[~is_gallery],
        gallery_rows=rows[is_gallery],
        remove_junk=False,
        is_drawn=True,
    )


def _cross_camera(index: IndexColumns, protocol: str) -> list[Trial]:
    """A trial per camera: its queries against the gallery images of all other cameras; the figures are averaged."""
    query, gallery = _rows(index, "query", None, protocol), _rows(index, "gallery", None, protocol)
    cameras = sorted(set(index.camera_id[query].tolist()))
    if "" in cameras or len(set(index.camera_id[gallery].tolist())) < 2:
        raise ValueError(
            f"protocol {protocol!r} needs known cameras, at least two in the gallery; got {cameras} for the queries"
        )
    return [
        Trial(
            name=camera,
            query_rows=query[index.camera_id[query] == camera],
            gallery_rows=gallery[index.camera_id[gallery] != camera],
            remove_junk=False,
        )
        for camera in cameras
    ]
