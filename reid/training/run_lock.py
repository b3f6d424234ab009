"""One driver per run: a lock file with a heartbeat beside the checkpoints."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reid.storage import Location, delete_tree, read_bytes, write_bytes_atomic
from reid.training.checkpoint_files import CheckpointDamagedError, json_from_bytes, json_to_bytes

logger = logging.getLogger(__name__)

LOCK_NAME = "run.lock"


class RunLockedError(ValueError):
    """Another process works on this run."""


class RunLock:
    """Held while a driver works on a run; two drivers with one name would overwrite each other's checkpoints.

    A lock is free when its holder gave it back, is a process of this machine that has ended, or has not written its
    heartbeat for `stale_after_seconds` and does not for another `watch_seconds`: the first is told by two machines'
    clocks, which may differ, the second by one. Object stores have no exclusive creation: the lock is written and read
    again after a short pause, and who reads another's name has lost.
    """

    def __init__(
        self,
        folder: Location,
        *,
        stale_after_seconds: float = 300.0,
        heartbeat_seconds: float = 20.0,
        watch_seconds: float = 50.0,
        settle_seconds: float = 0.5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is locked yet; use it as a context, or `acquire` and `release`.

        Args:
            folder: The run folder.
            stale_after_seconds: Silence after which a lock may be taken over.
            heartbeat_seconds: Distance between heartbeats.
            watch_seconds: How long a lock that may be taken over is looked at for a heartbeat; two of them and more.
            settle_seconds: Pause before the own lock is read again, on object stores and when taking over.
            clock: Seconds since the epoch.
        """
        self._file = folder.child(LOCK_NAME)
        self._stale_after_seconds, self._heartbeat_seconds = stale_after_seconds, heartbeat_seconds
        self._watch_seconds, self._settle_seconds, self._clock = watch_seconds, settle_seconds, clock
        self._token = uuid.uuid4().hex
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = False
        """Set when another process has taken the lock over: this one was silent for too long and must stop."""

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock and start the heartbeat.

        Raises:
            RunLockedError: When somebody holds it; the message says who.
        """
        holder = self._read()
        if holder is None and self._create():
            self._start()
            return
        holder = holder or self._read()
        if holder is not None and not self._is_free(holder):
            silence = self._clock() - holder["heartbeat"]
            raise RunLockedError(
                f"the run {self._file.uri.rpartition('/')[0]} is held by process {holder['pid']} on {holder['host']} "
                f"(last heartbeat {silence:.0f} s ago): stop it, choose another run name, or wait until it has been "
                f"silent for {self._stale_after_seconds:.0f} s"
            )
        if holder is not None:
            logger.warning("taking over the run from process %s on %s, which is gone", holder["pid"], holder["host"])
        self._write()
        time.sleep(self._settle_seconds)
        winner = self._read()
        if winner is None or winner["token"] != self._token:
            raise RunLockedError(f"another process took {self._file.uri} at the same moment: only one may go on")
        self._start()

    def release(self) -> None:
        """Stop the heartbeat and give the lock back, if it is still ours."""
        self._done.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        holder = self._read()
        if holder is not None and holder["token"] == self._token:
            delete_tree(self._file)

    def _create(self) -> bool:
        """Create the lock file if there is none; False when it exists or the storage cannot do that in one move."""
        if not self._file.is_local:
            return False
        path = self._file.local_path
        path.parent.mkdir(parents=True, exist_ok=True)
        complete = path.with_name(f".{LOCK_NAME}-{self._token}")
        complete.write_bytes(self._content())
        try:
            os.link(complete, path)  # fails when the name is taken, and never shows a part of the content
        except FileExistsError:
            return False
        finally:
            complete.unlink()
        return True

    def _content(self) -> bytes:
        return json_to_bytes(
            {
                "token": self._token,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "process_start": _process_start(os.getpid()),
                "heartbeat": self._clock(),
            }
        )

    def _write(self) -> None:
        write_bytes_atomic(self._file, self._content())

    def _read(self) -> dict[str, Any] | None:
        try:
            content = json_from_bytes(read_bytes(self._file), LOCK_NAME)
        except (FileNotFoundError, CheckpointDamagedError):
            return None
        return content if {"token", "host", "pid", "heartbeat"} <= content.keys() else None

    def _is_free(self, holder: dict[str, Any]) -> bool:
        if holder["host"] == socket.gethostname():
            start = _process_start(int(holder["pid"]))
            if start is None or start != holder.get("process_start"):
                return True
        silence = self._clock() - holder["heartbeat"]
        return silence > self._stale_after_seconds and self._stays_silent(holder, silence)

    def _stays_silent(self, holder: dict[str, Any], silence: float) -> bool:
        """Whether no heartbeat comes while we look, whatever the clocks of the two machines say."""
        logger.warning(
            "the run is held by process %s on %s, silent for %.0f s by this machine's clock: looking for a heartbeat"
            " for %.0f s before taking it over",
            holder["pid"], holder["host"], silence, self._watch_seconds,
        )  # fmt: skip
        until = time.monotonic() + self._watch_seconds
        while time.monotonic() < until:
            time.sleep(min(1.0, self._watch_seconds / 10))
            now = self._read()
            if now is not None and (now["token"], now["heartbeat"]) != (holder["token"], holder["heartbeat"]):
                logger.warning("a heartbeat came: the clocks of %s and of this machine differ", holder["host"])
                return False
        return True

    def _start(self) -> None:
        self._done.clear()
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._done.wait(self._heartbeat_seconds):
            try:
                holder = self._read()
                if holder is not None and holder["token"] != self._token:
                    self.lost = True
                    logger.error("process %s on %s has taken this run over", holder["pid"], holder["host"])
                    return
                self._write()
            except OSError as error:
                logger.warning("the heartbeat of %s failed: %s", self._file.uri, error)


def _process_start(pid: int) -> str | None:
    """Something that tells a process from a later one with the same number; None when it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "unknown" if not Path("/proc/self/stat").exists() and _is_running(pid) else None
    return None if fields[0] == "Z" else fields[19]  # state, and start time in clock ticks since boot


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
