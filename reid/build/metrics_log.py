"""Every figure of a run, one JSON object a line, written by training and by evaluation.

Rows carry `kind` ("interval", "epoch", "evaluation", "message"), `step` and `epoch`. Each writer has a file of its own
in `metrics/`, named by the time it began: on a network file system two machines cannot append to one file without
tearing each other's lines, and on an object store, where nothing can append, the file is rewritten. Rows are never
taken back: after a resume a step may stand twice, and the later row counts (`read_metrics` keeps only that one).
`metrics.jsonl`, for people and their plots, is what `read_metrics` gives, brought up to date by the driver.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

from reid.storage import Location, RetryPolicy, exists, list_names, read_bytes, write_bytes_atomic

logger = logging.getLogger(__name__)

ROWS_THAT_WAIT: Final = 10_000
"""Rows kept in memory while they cannot be written: some megabytes."""


class MetricsLog:
    """Appends rows to the metrics of a run, in a file that no other writer touches.

    A storage that refuses costs nothing but time: rows wait in memory, the newest `ROWS_THAT_WAIT` of them, and are
    written in their order when it takes some again. One warning an outage says so. `failed` counts the writes that did
    not happen, `lost` the rows that there was no room for.
    """

    def __init__(self, folder: Location) -> None:
        self.failed = 0
        self.lost = 0
        self._folder = folder
        self._file = folder.child(f"metrics/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl")
        self._written: list[str] = []
        """All rows so far, where they are written anew each time."""
        self._waiting: list[str] = []
        self._is_out = False
        """Whether the last write failed."""
        # Guards the rows that wait and the mark that a thread is writing; never held while writing, which may log
        # warnings, which may become rows.
        self._lock = threading.Lock()
        self._is_writing = False

    def append(self, kind: str, row: Mapping[str, Any]) -> None:
        """Adds one row and makes it durable against a killed process, now or when the storage is back.

        Numbers that are not finite become null.
        """
        line = json.dumps({"kind": kind, **{key: _plain(value) for key, value in row.items()}}, allow_nan=False)
        with self._lock:
            self._keep([*self._waiting, line])
            if self._is_writing:  # whoever does takes this row along
                return
            self._is_writing = True
        try:
            self._write_waiting()
        except BaseException:
            self._is_writing = False
            raise

    def _keep(self, lines: list[str]) -> None:
        self.lost += max(0, len(lines) - ROWS_THAT_WAIT)
        self._waiting = lines[-ROWS_THAT_WAIT:]

    def _take(self) -> list[str]:
        """What waits; when nothing does, nobody is writing any more."""
        with self._lock:
            lines, self._waiting = self._waiting, []
            self._is_writing = bool(lines)
            return lines

    def _write_waiting(self) -> None:
        """Writes what waits, and what comes meanwhile, until nothing does or the storage refuses."""
        while lines := self._take():
            try:
                self._write(lines)
            except OSError as error:
                with self._lock:
                    self._keep([*lines, *self._waiting])
                self._note_failure(error)
                self._is_writing = False
                return
            if self._is_out:
                self._is_out = False
                logger.warning("metrics are written again: %d row(s) had waited, %d were lost", len(lines), self.lost)

    def _write(self, lines: list[str]) -> None:
        if self._folder.is_local:
            os.makedirs(self._file.parent.local_path, exist_ok=True)
            # A write that failed may have left a part of a line: the empty line after it keeps this one whole.
            text = "\n".join((*([""] if self._is_out else []), *lines, ""))
            with open(self._file.local_path, "ab") as file:
                file.write(text.encode())
        else:
            # While the storage is out, one try a row is enough: training waits here.
            policy = RetryPolicy(attempts=1) if self._is_out else None
            write_bytes_atomic(self._file, ("\n".join((*self._written, *lines)) + "\n").encode(), policy)
            self._written += lines

    def _note_failure(self, error: OSError) -> None:
        self.failed += 1
        if not self._is_out:
            self._is_out = True
            logger.warning(
                "metrics could not be written to %s: %s; training goes on, rows wait in memory (at most %d)",
                self._file.uri, error, ROWS_THAT_WAIT,
            )  # fmt: skip


def read_metrics(folder: Location) -> list[dict[str, Any]]:
    """All rows of a run in the order of (step, kind); of rows for the same kind and step the last one written."""
    parts = folder.child("metrics")
    names = list_names(parts) if exists(parts) else []
    rows: dict[tuple[int, str, str], dict[str, Any]] = {}
    for name in sorted(names):  # by the time their writers began
        for line in read_bytes(parts.child(name)).decode().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                # A line cut by a kill or a full disk.
                continue
            rows[row_key(row)] = row
    return [rows[key] for key in sorted(rows)]


def write_merged_metrics(folder: Location, rows: Iterable[Mapping[str, Any]]) -> None:
    """Brings `metrics.jsonl` up to date with what `read_metrics` has just given."""
    lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
    write_bytes_atomic(folder.child("metrics.jsonl"), "".join(lines).encode())


def row_key(row: Mapping[str, Any]) -> tuple[int, str, str]:
    """What two rows must share for the later one to replace the earlier: step, kind and, of messages, the text."""
    return int(row.get("step", 0)), str(row["kind"]), str(row.get("text", ""))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
