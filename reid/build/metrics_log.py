"""Every figure of a run, one JSON object a line, written by training and by evaluation.

Rows carry `kind` ("interval", "epoch", "evaluation", "message"), `step` and `epoch`. Each writer has a file of its own
in `metrics/`, named by the time it began: on a network file system two machines cannot append to one file without
tearing each other's lines, and on an object store, where nothing can append, the file is rewritten. Rows are never
taken back: after a resume a step may stand twice, and the later row counts (`read_metrics` keeps only that one).
`metrics.jsonl`, for people and their plots, is what `read_metrics` gives, brought up to date by the driver.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from reid.storage import Location, exists, list_names, read_bytes, write_bytes_atomic


class MetricsLog:
    """Appends rows to the metrics of a run, in a file that no other writer touches."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._file = folder.child(f"metrics/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl")
        self._lines: list[str] = []
        """All rows so far, where they are written anew each time."""

    def append(self, kind: str, row: Mapping[str, Any]) -> None:
        """Adds one row and makes it durable against a killed process. Numbers that are not finite become null."""
        line = json.dumps({"kind": kind, **{key: _plain(value) for key, value in row.items()}}, allow_nan=False)
        if self._folder.is_local:
            os.makedirs(self._file.parent.local_path, exist_ok=True)
            # One write call on a file opened for appending: rows of several threads never mix.
            with open(self._file.local_path, "ab") as file:
                file.write(line.encode() + b"\n")
        else:
            self._lines.append(line)
            write_bytes_atomic(self._file, ("\n".join(self._lines) + "\n").encode())


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
                # The last line of a process that was killed while writing.
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
