from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reid.storage import open_location
from reid.training.run_lock import LOCK_NAME, RunLock, RunLockedError


def _foreign(folder: Path, *, heartbeat: float, host: str = "elsewhere", pid: int = 7) -> None:
    content = {"token": "t", "host": host, "pid": pid, "process_start": "1", "heartbeat": heartbeat}
    (folder / LOCK_NAME).write_text(json.dumps(content))


def test_a_second_driver_is_refused_with_the_holders_name(tmp_path: Path) -> None:
    folder = open_location(tmp_path)
    with RunLock(folder):
        with pytest.raises(RunLockedError, match=rf"held by process {os.getpid()} on {socket.gethostname()}"):
            RunLock(folder).acquire()
        assert (tmp_path / LOCK_NAME).exists()
    assert os.listdir(tmp_path) == []
    with RunLock(folder):
        pass


def test_a_lock_of_another_machine_is_taken_over_after_long_silence_only(tmp_path: Path) -> None:
    folder = open_location(tmp_path)
    _foreign(tmp_path, heartbeat=time.time() - 100)
    with pytest.raises(RunLockedError, match=r"process 7 on elsewhere \(last heartbeat 100 s ago\)"):
        RunLock(folder).acquire()
    _foreign(tmp_path, heartbeat=time.time() - 301)
    with RunLock(folder, settle_seconds=0.0, watch_seconds=0.1):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_a_lock_whose_heartbeat_moves_is_not_taken_over_whatever_the_clocks_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    behind = time.time() - 400
    _foreign(tmp_path, heartbeat=behind)
    beat = threading.Timer(0.3, lambda: _foreign(tmp_path, heartbeat=behind + 20))
    beat.start()
    with pytest.raises(RunLockedError, match="process 7 on elsewhere"):
        RunLock(open_location(tmp_path), watch_seconds=20.0).acquire()
    beat.join()
    assert "the clocks of elsewhere and of this machine differ" in caplog.text


def test_a_lock_of_a_dead_process_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    _foreign(tmp_path, heartbeat=time.time(), host=socket.gethostname(), pid=dead.pid)
    with RunLock(open_location(tmp_path), settle_seconds=0.0):
        pass


def test_a_later_process_with_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    _foreign(tmp_path, heartbeat=time.time(), host=socket.gethostname(), pid=os.getpid())
    with RunLock(open_location(tmp_path), settle_seconds=0.0):
        pass


def test_a_lock_that_was_taken_over_says_so_and_is_not_given_back(tmp_path: Path) -> None:
    lock = RunLock(open_location(tmp_path), heartbeat_seconds=0.02)
    with lock:
        _foreign(tmp_path, heartbeat=time.time())
        deadline = time.monotonic() + 10
        while not lock.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.lost
    assert json.loads((tmp_path / LOCK_NAME).read_text())["host"] == "elsewhere"


def test_the_heartbeat_moves(tmp_path: Path) -> None:
    with RunLock(open_location(tmp_path), heartbeat_seconds=0.02):
        first = json.loads((tmp_path / LOCK_NAME).read_text())["heartbeat"]
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / LOCK_NAME).read_text())["heartbeat"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads((tmp_path / LOCK_NAME).read_text())["heartbeat"] > first
