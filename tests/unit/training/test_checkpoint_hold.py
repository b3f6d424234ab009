"""A checkpoint that is held: as long as it is needed, and not for ever."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from reid.storage import open_location
from reid.training.checkpoint import CheckpointStore
from reid.training.checkpoint_files import name_of_step
from reid.training.checkpoint_hold import held

NAME = name_of_step(7)


def test_a_checkpoint_is_held_longer_than_a_pin_lasts_and_let_go_afterwards(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path))
    with held(store.location.child(NAME), "test", expiry_seconds=0.4):
        time.sleep(1)
        assert store.pinned() == {NAME}
    assert store.pinned() == set()


def test_two_who_hold_the_same_checkpoint_do_not_let_it_go_for_each_other(tmp_path: Path) -> None:
    store = CheckpointStore(open_location(tmp_path))
    with held(store.location.child(NAME), "test"):
        with held(store.location.child(NAME), "test"):
            pass
        assert store.pinned() == {NAME}


def test_what_cannot_be_written_is_used_without_a_pin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "pins").write_text("in the way")
    done = False
    with held(open_location(tmp_path).child(NAME), "test"):
        done = True
    assert done
    assert "cannot be pinned" in caplog.text
    with held(open_location(f"https://example.invalid/runs/a/checkpoints/{NAME}"), "test"):
        pass
    assert "http and https are for reading" in caplog.text
