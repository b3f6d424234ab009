from __future__ import annotations

import json
import pickle
import struct
from typing import Any

import pytest
import torch

from reid.storage import Location, open_location, write_bytes_atomic
from reid.training.checkpoint import CheckpointConfig, CheckpointStore
from reid.training.checkpoint_files import (
    CheckpointDamagedError,
    digest_of,
    json_from_bytes,
    json_to_bytes,
    tensors_from_bytes,
    tensors_to_bytes,
)
from reid.training.snapshot import Position, RunDescription, take_snapshot
from reid.training.step import NonFiniteLossError
from tests.unit.training.small_run import build_step, differing


def _safetensors(header: str, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + body


def test_tensors_of_every_kind_and_layout_come_back() -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    shared = torch.randn(5)
    tensors = {
        "weight": weight,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 2),
        "counts": torch.tensor([2**40]),
        "flags": torch.tensor([True, False]),
        "half": torch.randn(3).to(torch.bfloat16),
        "view": weight[1:, ::2],
        "shared": shared,
        "shared again": shared,
    }
    actual = tensors_from_bytes(tensors_to_bytes(tensors), "file")
    assert differing(tensors, actual) == []
    assert all(actual[name].dtype == value.dtype for name, value in tensors.items())


def test_a_name_that_occurs_twice_is_refused() -> None:
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    double = _safetensors(f'{{"a":{entry},"a":{entry}}}', b"x")
    single = _safetensors(f'{{"a":{entry}}}', b"x")
    assert tensors_from_bytes(single, "file")["a"].tolist() == [ord("x")]
    with pytest.raises(CheckpointDamagedError, match="'a' occurs twice"):
        tensors_from_bytes(double, "file")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04.",
        struct.pack("<Q", 2**40) + b"{}",
        _safetensors("{", b""),
        _safetensors("[" * 100_000, b""),
        _safetensors('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"only"),
        _safetensors(
            '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
            b"abc",
        ),
    ],
    ids=["empty", "pickle", "tebibyte header", "broken header", "header without end", "truncated", "overlap"],
)
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointDamagedError, match="file is not a safetensors file") as caught:
        tensors_from_bytes(data, "file")
    assert caught.value.reason == "format"


def test_json_is_strict() -> None:
    assert json_from_bytes(json_to_bytes({"a": 0.1 + 0.2}), "file") == {"a": 0.1 + 0.2}
    for text in ("", "[1]", '{"a": 1, "a": 2}', "{'a': 1}", "[" * 100_000):
        with pytest.raises(CheckpointDamagedError):
            json_from_bytes(text.encode(), "file")
    with pytest.raises(ValueError, match="Out of range float"):
        json_to_bytes({"a": float("nan")})


def test_a_digest_does_not_depend_on_order_or_tuples() -> None:
    assert digest_of({"a": (1, 2), "b": {"c": 1, "d": 2}}) == digest_of({"b": {"d": 2, "c": 1}, "a": [1, 2]})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


@pytest.fixture
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """A file system that claims not to be local: put, get, list and delete only, as an object store offers."""
    from pyarrow import fs

    root = tmp_path_factory.mktemp("bucket")
    flat = fs.SubTreeFileSystem(str(root), fs.LocalFileSystem())
    return Location(flat, "runs/checkpoints", "s3://bucket/runs/checkpoints")


def test_an_object_store_holds_checkpoints_too(bucket: Location) -> None:
    bucket.filesystem.create_dir(bucket.path, recursive=True)
    store = CheckpointStore(bucket, CheckpointConfig(keep_last=2))
    step = build_step()
    assert not bucket.is_local
    for number in (1, 2, 3):
        bucket.filesystem.create_dir(f"{bucket.path}/step-{number:08d}")
        assert store.save(take_snapshot(step, Position(step=number), RunDescription())) == f"step-{number:08d}"
    assert store.names() == ["step-00000002", "step-00000003"]
    assert store.newest() == "step-00000003"
    assert differing(step.bare_model.state_dict(), dict(store.load("step-00000003").model)) == []

    manifest = bucket.child("step-00000003/manifest.json")
    bucket.filesystem.delete_file(manifest.path)
    assert store.newest() == "step-00000002"  # without a manifest a folder does not exist
    assert dict(store.rejected) == {"no_manifest": 1}
    assert store.save(take_snapshot(step, Position(step=3), RunDescription())) == "step-00000003"
    assert store.newest() == "step-00000003"


def test_a_manifest_that_was_edited_is_refused(tmp_path: Any) -> None:
    store = CheckpointStore(open_location(tmp_path))
    name = store.save(take_snapshot(build_step(), Position(step=1), RunDescription())) or ""
    location = store.location.child(name).child("manifest.json")
    content = json.loads(location.local_path.read_text())
    content["step"] = 2
    write_bytes_atomic(location, json.dumps(content).encode())
    assert store.newest() is None
    assert dict(store.rejected) == {"manifest": 1}


def test_errors_of_training_survive_the_way_between_processes() -> None:
    damaged = pickle.loads(pickle.dumps(CheckpointDamagedError("hash", "model.safetensors differs")))
    assert (damaged.reason, str(damaged)) == ("hash", "model.safetensors differs")
    diverged = pickle.loads(pickle.dumps(NonFiniteLossError("aborted", {"loss": 1.0})))
    assert (diverged.report, str(diverged)) == ({"loss": 1.0}, "aborted")
