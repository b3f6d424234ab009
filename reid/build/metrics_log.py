"""`metrics.jsonl`: every figure of a run, one JSON object a line, appended by training and by evaluation.

Rows carry `kind` ("interval", "epoch", "evaluation", "message"), `step` and `epoch`. The file is append-only: after a
resume a step may stand twice, and the later row counts (`read_metrics` keeps only that one). An object store cannot
append, so there each writer keeps an object of its own, `metrics.<writer>.jsonl`, rewritten at each flush.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

from reid.storage import Location, exists, list_names, read_bytes, write_bytes_atomic


class MetricsLog:
    """Appends rows to the metrics of a run."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._object = f"metrics.{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
        self._lines: list[str] = []

    def append(self, kind: str, row: Mapping[str, Any]) -> None:
        """Adds one row and makes it durable against a killed process. Numbers that are not finite become null."""
        line = json.dumps({"kind": kind, **{key: _plain(value) for key, value in row.items()}}, allow_nan=False)
        if self._folder.is_local:
            os.makedirs(self._folder.local_path, exist_ok=True)
            # One write call on a file opened for appending: rows of several writers never mix.
            with open(self._folder.child("metrics.jsonl").local_path, "ab") as file:
                file.write(line.encode() + b"\n")
        else:
            self._lines.append(line)
            write_bytes_atomic(self._folder.child(self._object), ("\n".join(self._lines) + "\n").encode())


def read_metrics(folder: Location) -> list[dict[str, Any]]:
    """All rows of a run in the order of (step, kind); of rows for the same kind and step the last one written."""
    names = (
        [n for n in list_names(folder) if n.startswith("metrics") and n.endswith(".jsonl")] if exists(folder) else []
    )
    rows: dict[tuple[int, str, str], dict[str, Any]] = {}
    for name in sorted(names):
        for line in read_bytes(folder.child(name)).decode().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                # The last line of a process that was killed while writing.
                continue
            rows[row_key(row)] = row
    return [rows[key] for key in sorted(rows)]


def row_key(row: Mapping[str, Any]) -> tuple[int, str, str]:
    """What two rows must share for the later one to replace the earlier: step, kind and, of messages, the text."""
    return int(row.get("step", 0)), str(row["kind"]), str(row.get("text", ""))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
