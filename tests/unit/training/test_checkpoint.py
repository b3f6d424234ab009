from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from reid.storage import open_location
from reid.training import checkpoint_files
from reid.training.checkpoint import (
    CheckpointConfig,
    CheckpointFailedError,
    CheckpointStore,
)
from reid.training.checkpoint_files import CheckpointDamagedError, CheckpointRefusedError
from reid.training.optim import OptimizerConfig
from reid.training.snapshot import CheckpointState, Position, RunDescription, restore_snapshot, take_snapshot
from reid.training.step import StepConfig
from tests.unit.training.small_run import PlannedStream, build_step, differing, everything

RUN = RunDescription(config={"name": "trial"}, fixed={"optim": {"rate": 0.1}, "epochs": 3}, data_hash="abc")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(open_location(tmp_path / "checkpoints"))


@pytest.fixture(scope="module")
def state() -> CheckpointState:
    step = build_step(StepConfig(precision="float32", ema_decay=0.9))
    step.train_batch(PlannedStream().batch(0, 0))
    return take_snapshot(step, Position(epoch=1, step_in_epoch=2, step=7), RUN)


def _at(state: CheckpointState, step: int, run: RunDescription | None = None) -> CheckpointState:
    values = {name: getattr(state, name) for name in CheckpointState.__slots__}
    return CheckpointState(**{**values, "position": Position(step=step), "run": run or state.run})


def _file(store: CheckpointStore, name: str, file: str) -> Path:
    return store.location.child(name).child(file).local_path


def test_the_newest_position_is_found_without_the_tensors(store: CheckpointStore, state: CheckpointState) -> None:
    assert store.newest_position() is None
    for step in (3, 7, 9):
        store.save(_at(state, step))
    _file(store, "step-00000007", "model.safetensors").unlink()
    _file(store, "step-00000009", "state.json").write_bytes(b"{}")
    assert store.newest_position() == ("step-00000007", Position(step=7))
    assert store.newest() == "step-00000003"


def test_what_is_loaded_is_what_was_saved(store: CheckpointStore, state: CheckpointState) -> None:
    assert store.save(state) == "step-00000007"
    loaded = store.load("step-00000007")
    for name in ("position", "run", "scaler", "counters", "average_updates", "learning_rates", "world_size"):
        assert getattr(loaded, name) == getattr(state, name), name
    assert differing(dict(state.model), dict(loaded.model)) == []
    assert differing(dict(state.optimizer.tensors), dict(loaded.optimizer.tensors)) == []
    assert differing(dict(state.average or {}), dict(loaded.average or {})) == []
    assert loaded.optimizer.kind == "Adam"
    assert dict(loaded.random.values) == dict(state.random.values)
    assert store.load_run("step-00000007") == RUN


def test_evaluation_loads_the_average_and_on_request_the_trained_weights(
    store: CheckpointStore, state: CheckpointState
) -> None:
    name = store.save(state) or ""
    assert differing(dict(state.average or {}), store.load_model_weights(name)) == []
    assert differing(dict(state.model), store.load_model_weights(name, average=False)) == []
    assert differing(store.load_model_weights(name), store.load_model_weights(name, average=False)) != []


def test_no_checkpoint_at_all_is_none(store: CheckpointStore) -> None:
    assert store.newest() is None
    assert store.names() == []


def test_checkpoints_are_ordered_by_step_not_by_name_or_time(store: CheckpointStore, state: CheckpointState) -> None:
    for step in (900_000_000, 5, 1_000_000_000):
        store.save(_at(state, step))
    assert store.names() == ["step-00000005", "step-900000000", "step-1000000000"]
    assert store.newest() == "step-1000000000"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {"flipped": _flip, "truncated": _truncate, "missing": Path.unlink}
FILES = ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "random.safetensors", "state.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_every_damage_to_every_file_falls_back_to_the_checkpoint_before(
    store: CheckpointStore, state: CheckpointState, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    store.save(_at(state, 1))
    store.save(_at(state, 2))
    DAMAGES[damage](_file(store, "step-00000002", file))
    with caplog.at_level(logging.WARNING):
        assert CheckpointStore(store.location).newest() == "step-00000001"
    assert len(caplog.records) == 1
    assert f"step-00000002/{file}" in caplog.text
    with pytest.raises(CheckpointDamagedError, match=f"step-00000002/{file}"):
        store.load("step-00000002")


def test_reasons_are_counted_from_a_fixed_set(store: CheckpointStore, state: CheckpointState) -> None:
    for step in (1, 2, 3):
        store.save(_at(state, step))
    _flip(_file(store, "step-00000003", "model.safetensors"))
    _truncate(_file(store, "step-00000002", "model.safetensors"))
    fresh = CheckpointStore(store.location)
    assert fresh.newest() == "step-00000001"
    assert dict(fresh.rejected) == {"sha256": 1, "size": 1}


def test_a_damaged_checkpoint_is_written_anew_at_its_step(store: CheckpointStore, state: CheckpointState) -> None:
    store.save(_at(state, 1))
    store.save(_at(state, 2))
    _flip(_file(store, "step-00000002", "model.safetensors"))
    assert store.save(_at(state, 2)) == "step-00000002"
    assert store.newest() == "step-00000002"
    assert store.repeated == 0


def test_saving_a_step_twice_is_once(store: CheckpointStore, state: CheckpointState) -> None:
    store.save(_at(state, 1))
    before = _file(store, "step-00000001", "manifest.json").stat().st_ino
    assert store.save(_at(state, 1)) == "step-00000001"
    assert store.repeated == 1
    assert _file(store, "step-00000001", "manifest.json").stat().st_ino == before


def test_the_same_step_of_other_settings_is_replaced(store: CheckpointStore, state: CheckpointState) -> None:
    store.save(_at(state, 1))
    other = RunDescription(fixed={"optim": {"rate": 0.2}})
    store.save(_at(state, 1, other))
    assert store.load_run("step-00000001") == other


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_is_never_executed(
    store: CheckpointStore, state: CheckpointState, tmp_path: Path, file: str
) -> None:
    import pickle

    name = store.save(state) or ""
    victim = tmp_path / "executed"
    payload = pickle.dumps(_Bomb(victim))
    pickle.loads(payload).close()
    assert victim.exists()  # the payload works
    victim.unlink()
    zipped = tmp_path / "payload.pt"
    torch.save(_Bomb(victim), zipped)
    for content in (payload, zipped.read_bytes()):
        _file(store, name, file).write_bytes(content)
        manifest = json.loads(_file(store, name, "manifest.json").read_text())
        manifest["files"][file] = {"size": len(content), "sha256": checkpoint_files.sha256_of(content)}
        del manifest["digest"]
        manifest["digest"] = checkpoint_files.digest_of(manifest)
        _file(store, name, "manifest.json").write_text(json.dumps(manifest))
        assert store.newest() == name  # the forger got all the hashes right
        with pytest.raises(CheckpointDamagedError, match=f"{name}/{file} is not"):
            store.load(name)
        assert not victim.exists()


def test_a_newer_schema_is_refused_with_both_versions(
    store: CheckpointStore, state: CheckpointState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "SCHEMA_VERSION", 4)
    name = store.save(state) or ""
    monkeypatch.undo()
    assert store.newest() == name  # not damaged: nothing falls back silently
    with pytest.raises(
        CheckpointRefusedError, match=r"written by vehicle-reid \S+ \(schema 4\), this is .* \(schema 1\)"
    ):
        store.load(name)


def test_a_newer_schema_of_another_layout_is_refused_and_a_manifest_without_fields_is_damaged(
    store: CheckpointStore, state: CheckpointState
) -> None:
    name = store.save(state) or ""
    path = _file(store, name, "manifest.json")
    for schema, error, words in (
        (9, CheckpointRefusedError, r"written by somebody \(schema 9\), this is .* \(schema 1\)"),
        (1, CheckpointDamagedError, "lacks fields of its schema"),
    ):
        manifest = {"schema": schema, "product": "somebody", "parts": []}
        path.write_text(json.dumps(manifest | {"digest": checkpoint_files.digest_of(manifest)}))
        with pytest.raises(error, match=words):
            store.load(name)


def test_the_state_of_another_optimizer_is_refused_before_anything_moves(state: CheckpointState) -> None:
    step = build_step(StepConfig(precision="float32", ema_decay=0.9), OptimizerConfig(name="sgd", learning_rate=0.1))
    before = everything(step)
    with pytest.raises(ValueError, match=r"state of Adam \(torch\), this run uses SGD \(torch\)"):
        restore_snapshot(step, state)
    assert differing(before, everything(step)) == []


def test_retention_keeps_the_newest_verified_ones(tmp_path: Path, state: CheckpointState) -> None:
    store = CheckpointStore(open_location(tmp_path), CheckpointConfig(keep_last=2))
    for step in range(1, 6):
        store.save(_at(state, step))
    assert store.names() == ["step-00000004", "step-00000005"]


def test_retention_never_counts_a_damaged_checkpoint(tmp_path: Path, state: CheckpointState) -> None:
    store = CheckpointStore(open_location(tmp_path), CheckpointConfig(keep_last=2))
    for step in (1, 2, 3):
        store.save(_at(state, step))
    _flip(_file(store, "step-00000003", "model.safetensors"))
    fresh = CheckpointStore(open_location(tmp_path), CheckpointConfig(keep_last=2))
    fresh.save(_at(state, 4))
    assert fresh.names() == ["step-00000002", "step-00000003", "step-00000004"]
    fresh.save(_at(state, 5))
    assert fresh.names() == ["step-00000004", "step-00000005"]


def test_retention_spares_pinned_and_protected_checkpoints(tmp_path: Path, state: CheckpointState) -> None:
    store = CheckpointStore(open_location(tmp_path), CheckpointConfig(keep_last=1))
    store.save(_at(state, 1))
    elsewhere = CheckpointStore(open_location(tmp_path))  # another process
    elsewhere.pin("step-00000001", "best")
    elsewhere.pin("step-00000001", "evaluation-7", expires_after_seconds=60)
    store.save(_at(state, 2), protected={"step-00000002"})
    store.save(_at(state, 3), protected={"step-00000002"})
    assert store.names() == ["step-00000001", "step-00000002", "step-00000003"]
    elsewhere.unpin("step-00000001", "best")
    store.save(_at(state, 4))
    assert store.names() == ["step-00000001", "step-00000004"]
    elsewhere.pin("step-00000001", "evaluation-7", expires_after_seconds=-1)
    store.save(_at(state, 5))
    assert store.names() == ["step-00000005"]
    with pytest.raises(ValueError, match=r"holder '\.\./x' must consist"):
        store.pin("step-00000005", "../x")


def test_a_failed_delete_does_not_stop_training(
    store: CheckpointStore, state: CheckpointState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 5):
            assert store.save(_at(state, step)) is not None
    assert "could not be deleted" in caplog.text
    assert store.newest() == "step-00000004"


def _full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def write(self: Path, data: bytes) -> int:
        if self.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)


def test_a_full_disk_costs_one_checkpoint_and_the_third_in_a_row_aborts(
    store: CheckpointStore, state: CheckpointState, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(_at(state, 1))
    _full_disk(monkeypatch)
    assert store.save(_at(state, 2)) is None
    assert store.save(_at(state, 3)) is None
    monkeypatch.undo()
    assert store.save(_at(state, 4)) == "step-00000004"
    _full_disk(monkeypatch)
    assert store.save(_at(state, 5)) is None
    assert store.save(_at(state, 6)) is None
    with pytest.raises(CheckpointFailedError, match=r"step-00000007 .* No space left .* 3 failures in a row"):
        store.save(_at(state, 7))
    assert store.failed == 5
    assert sorted(os.listdir(store.location.local_path)) == ["step-00000001", "step-00000004"]


def test_a_nearly_full_disk_is_seen_before_writing(
    store: CheckpointStore, state: CheckpointState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage(store.location.local_path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with caplog.at_level(logging.WARNING):
        assert store.save(state) is None
    assert "MB free" in caplog.text
    assert os.listdir(store.location.local_path) == []


def test_orphans_are_removed_when_they_are_old(store: CheckpointStore, state: CheckpointState) -> None:
    store.save(_at(state, 1))
    root = store.location.local_path
    for name in (".tmp-step-00000002-aa", ".tmp-step-00000003-bb", "step-00000004"):
        (root / name).mkdir()
        (root / name / "model.safetensors").write_bytes(b"half")
    long_ago = time.time() - 7200
    for name in (".tmp-step-00000002-aa", "step-00000004", "step-00000001"):
        os.utime(root / name, (long_ago, long_ago))
    assert store.remove_orphans() == 2
    assert sorted(os.listdir(root)) == [".tmp-step-00000003-bb", "step-00000001"]
