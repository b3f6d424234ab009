"""Manifest and index: round trips, hashes, queries."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.data.index import Index, IndexRow, concatenate_indexes, index_from_parquet, index_from_rows, index_to_parquet
from reid.data.manifest import (
    Addition,
    IndexInfo,
    Manifest,
    ShardInfo,
    SkippedSample,
    manifest_from_json,
    manifest_to_json,
)


def make_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "schema_version": 1,
        "name": "small",
        "source_counts": {"train": 3},
        "counts": {"train": 2},
        "identities": {"train": 2},
        "skipped": {"image_truncated": 1},
        "skipped_samples": (SkippedSample(split="train", key="c", reason="image_truncated"),),
        "repairs": {},
        "labels": ("0003", "0007"),
        "num_classes": 2,
        "shards": (ShardInfo(name="train-000000.tar", split="train", size=1024, sha256="0" * 64, count=2),),
        "index": IndexInfo(size=10, sha256="1" * 64, content_sha256="2" * 64, rows=2),
        "packing": {"max_side": None},
        "plan_digest": "3" * 64,
    }
    return Manifest(**(values | changes)).sealed()


def make_index() -> Index:
    keypoints = np.zeros((20, 3), dtype=np.float32)
    keypoints[5] = (1.5, 2.5, 1.0)
    return index_from_rows(
        [
            IndexRow(key="b1", split="train", vehicle_id="0007", camera_id="c2", keypoints=keypoints, orientation=3),
            IndexRow(key="a1", split="train", vehicle_id="0003", camera_id="c1", image_offset=512, image_size=77),
            IndexRow(key="q1", split="query", vehicle_id="0003", camera_id=""),
            IndexRow(key="g1", split="gallery", vehicle_id="0100", camera_id="c2", subsets=("small", "large")),
            IndexRow(key="g2", split="gallery", vehicle_id="0100", camera_id="c1", subsets=("large",)),
            IndexRow(key="g3", split="gallery", vehicle_id="0101", camera_id="c1"),
        ]
    )


def make_enriched_index() -> Index:
    keypoints = np.ones((20, 3), dtype=np.float32)
    scores = np.linspace(0, 1, 20, dtype=np.float32)
    boxes = np.array([[0, 0, 0.5, 0.25], [0.25, 0.5, 0.75, 1]], dtype=np.float32)
    return index_from_rows(
        [
            IndexRow(key="a", split="train", vehicle_id="1", keypoints=keypoints, keypoint_scores=scores),
            IndexRow(key="b", split="train", vehicle_id="2", boxes=boxes, flags=("coarse-masks:foreground_small",)),
        ]
    )


def assert_same_index(actual: Index, expected: Index) -> None:
    assert actual.columns().keys() == expected.columns().keys()
    for name, right in expected.columns().items():
        left = getattr(actual, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


def test_a_manifest_survives_its_file() -> None:
    manifest = make_manifest()
    assert manifest_from_json(manifest_to_json(manifest), "manifest.json") == manifest
    assert manifest.num_images == 2
    assert manifest.num_bytes == 1024


def test_no_byte_of_a_manifest_can_lose_a_bit_unnoticed() -> None:
    data = manifest_to_json(make_manifest())
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (5 * position % 8)
        with pytest.raises(ValueError, match=r"m\.json"):
            manifest_from_json(bytes(damaged), "m.json")


def test_the_hash_depends_on_the_content_and_not_on_the_parquet_writer_or_the_place_of_the_raw_files() -> None:
    expected = make_manifest().hash
    assert make_manifest(plan_digest="f" * 64).hash == expected
    other_writer = IndexInfo(size=11, sha256="9" * 64, content_sha256="2" * 64, rows=2)
    assert make_manifest(index=other_writer).hash == expected
    other_content = IndexInfo(size=10, sha256="1" * 64, content_sha256="9" * 64, rows=2)
    assert make_manifest(index=other_content).hash != expected
    assert make_manifest(skipped={}, skipped_samples=()).hash != expected


def test_options_of_the_reader_are_recorded_beside_the_content() -> None:
    plain, told = make_manifest(), make_manifest(source={"format": "veri776", "on_duplicate": "last"})
    assert told.hash == plain.hash
    assert told.seal != plain.seal
    assert b'"source"' not in manifest_to_json(plain), "the bytes of a set without such options are what they were"
    assert manifest_from_json(manifest_to_json(told), "m.json") == told


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_no_manifest(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"m\.json is not JSON"):
        manifest_from_json(data, "m.json")


def test_a_manifest_of_a_newer_schema_is_refused_by_its_number() -> None:
    content = json.loads(manifest_to_json(make_manifest())) | {"schema_version": 3}
    with pytest.raises(ValueError, match="schema 3, this program reads schema 1 and 2"):
        manifest_from_json(json.dumps(content).encode(), "m.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null", b'{"schema_version": 1}', b"\xff\xfe"])
def test_what_is_no_manifest_is_refused_with_its_place(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/m\.json"):
        manifest_from_json(data, "s3://bucket/m.json")


@pytest.mark.parametrize("make", [make_index, make_enriched_index])
def test_an_index_survives_parquet_with_types_and_notes(make: Callable[[], Index]) -> None:
    expected = make()
    actual, notes = index_from_parquet(index_to_parquet(expected, {"made": "here"}), "index")
    assert_same_index(actual, expected)
    assert notes["made"] == "here"
    assert actual.content_sha256() == expected.content_sha256()


def test_an_empty_index_survives_parquet() -> None:
    actual, _ = index_from_parquet(index_to_parquet(index_from_rows([])), "index")
    assert_same_index(actual, index_from_rows([]))
    assert len(actual.rows("train")) == 0


def test_labels_number_the_sorted_training_vehicles_only() -> None:
    assert make_index().label.tolist() == [1, 0, -1, -1, -1, -1]


def test_joining_parts_numbers_labels_over_all_of_them() -> None:
    parts = [
        index_from_rows([IndexRow(key="a", split="train", vehicle_id="9")]),
        index_from_rows(
            [IndexRow(key="b", split="train", vehicle_id="4"), IndexRow(key="c", split="test", vehicle_id="1")]
        ),
    ]
    joined = concatenate_indexes(parts)
    assert joined.label.tolist() == [1, 0, -1]
    assert joined.key.tolist() == ["a", "b", "c"]


def test_joining_parts_gives_empty_values_to_those_without_an_optional_column() -> None:
    enriched = make_enriched_index()
    joined = concatenate_indexes([make_index(), enriched])
    for name in ("keypoint_scores", "boxes"):
        values = joined.columns()[name]
        assert (values[:6] == 0).all()
        np.testing.assert_array_equal(values[6:], enriched.columns()[name])
    assert joined.flags is not None
    assert joined.flags.tolist() == [()] * 7 + [("coarse-masks:foreground_small",)]
    assert concatenate_indexes([make_index()]).boxes is None


def test_rows_and_parts_of_an_index_are_what_it_was_made_of() -> None:
    for index in (make_index(), make_enriched_index()):
        assert_same_index(concatenate_indexes([index.take(np.array([0])), index.take(np.arange(1, len(index)))]), index)
        again = index_from_rows([index.row(number) for number in range(len(index))])
        assert_same_index(again, index)


def test_boxes_of_different_numbers_of_parts_are_refused() -> None:
    rows = [
        IndexRow(key=str(parts), split="train", vehicle_id="1", boxes=np.zeros((parts, 4), np.float32))
        for parts in (2, 3)
    ]
    with pytest.raises(ValueError, match=r"\[\(2, 4\), \(3, 4\)\]"):
        index_from_rows(rows)


def test_a_manifest_tells_what_was_added_from_schema_2_on() -> None:
    addition = Addition(
        name="coarse-masks",
        version="1",
        settings={},
        source_hash="4" * 64,
        members={"mask.png": 2},
        problems={},
        means={},
    )
    manifest = make_manifest(schema_version=2, additions=(addition,))
    assert manifest_from_json(manifest_to_json(manifest), "m.json").additions == (addition,)
    other = addition.model_copy(update={"version": "2"})
    assert make_manifest(schema_version=2, additions=(other,)).hash != manifest.hash
    smuggled = json.loads(manifest_to_json(make_manifest())) | {"additions": []}
    with pytest.raises(ValueError, match="written by another program or changed"):
        manifest_from_json(json.dumps(smuggled, sort_keys=True, indent=1).encode() + b"\n", "m.json")


def test_rows_of_a_subset_include_images_that_are_in_every_subset() -> None:
    index = make_index()
    assert index.rows("gallery").tolist() == [3, 4, 5]
    assert index.rows("gallery", "small").tolist() == [3, 5]
    assert index.rows("gallery", "large").tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match=r"subset 'medium'; known: \['large', 'small'\]"):
        index.rows("gallery", "medium")


def test_the_same_vehicle_has_the_same_code_in_every_split_and_unknown_cameras_are_minus_one() -> None:
    index = make_index()
    assert index.identity_codes().tolist() == [1, 0, 0, 2, 2, 3]
    assert index.camera_codes().tolist() == [1, 0, -1, 1, 0, 0]


@given(st.lists(st.tuples(st.sampled_from(["train", "query", "test"]), st.text(min_size=1, max_size=4)), max_size=20))
def test_codes_agree_with_equality_of_ids(images: list[tuple[Any, str]]) -> None:
    rows = [IndexRow(key=str(n), split=split, vehicle_id=vehicle) for n, (split, vehicle) in enumerate(images)]
    codes = index_from_rows(rows).identity_codes()
    for left, (_, one) in enumerate(images):
        for right, (_, other) in enumerate(images):
            assert (codes[left] == codes[right]) == (one == other)


def test_every_column_counts_in_the_content_hash() -> None:
    index = concatenate_indexes([make_index(), make_enriched_index()])
    expected = index.content_sha256()
    assert index.columns().keys() == set(Index.__slots__)
    for name, values in index.columns().items():
        changed = values.copy()
        match changed.dtype.kind:
            case "O":
                changed[0] = ("x",) if name in {"subsets", "flags"} else "x"
            case "b":
                changed[0] = not changed[0]
            case _:
                changed.reshape(-1)[0] += 1
        assert Index(**(index.columns() | {name: changed})).content_sha256() != expected, name


def test_a_file_without_the_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="index is not a readable Parquet file"):
        index_from_parquet(b"PAR1", "index")
