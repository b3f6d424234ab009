from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs
import pytest

from reid.build.metrics_log import MetricsLog, read_metrics, write_merged_metrics
from reid.storage import Location, open_location


def remote(folder: Path) -> Location:
    """A folder that calls itself remote: a sub-tree file system is not `LocalFileSystem`."""
    filesystem = pyarrow.fs.SubTreeFileSystem(str(folder), pyarrow.fs.LocalFileSystem())
    return Location(filesystem, "run", "s3://bucket/run")


def test_the_later_row_of_a_step_counts(tmp_path: Path) -> None:
    log = MetricsLog(open_location(tmp_path / "run"))
    log.append("epoch", {"step": 10, "epoch": 0, "loss": 3.0})
    log.append("epoch", {"step": 20, "epoch": 1, "loss": 2.0})
    resumed = MetricsLog(open_location(tmp_path / "run"))
    resumed.append("epoch", {"step": 20, "epoch": 1, "loss": 2.5})
    rows = read_metrics(open_location(tmp_path / "run"))
    assert [(row["step"], row["loss"]) for row in rows] == [(10, 3.0), (20, 2.5)]


def test_rows_of_different_kinds_and_messages_stand_side_by_side(tmp_path: Path) -> None:
    log = MetricsLog(open_location(tmp_path / "run"))
    log.append("epoch", {"step": 10})
    log.append("evaluation", {"step": 10, "mAP": 0.5})
    log.append("message", {"step": 0, "text": "first"})
    log.append("message", {"step": 0, "text": "second"})
    kinds = [row["kind"] for row in read_metrics(open_location(tmp_path / "run"))]
    assert sorted(kinds) == ["epoch", "evaluation", "message", "message"]


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    location = open_location(tmp_path / "run")
    MetricsLog(location).append("epoch", {"step": 1})
    (written,) = (tmp_path / "run" / "metrics").iterdir()
    with written.open("ab") as file:
        file.write(b'{"kind": "epoch", "st')
    assert [row["step"] for row in read_metrics(location)] == [1]
    MetricsLog(location).append("epoch", {"step": 2})  # by the process that continues
    assert [row["step"] for row in read_metrics(location)] == [1, 2]


def test_numbers_that_are_none_become_null(tmp_path: Path) -> None:
    location = open_location(tmp_path / "run")
    MetricsLog(location).append("epoch", {"step": 1, "loss": math.nan, "rate": math.inf})
    (row,) = read_metrics(location)
    assert row["loss"] is None
    assert row["rate"] is None


@pytest.mark.parametrize("opened", [remote, lambda folder: open_location(folder / "run")], ids=["remote", "local"])
def test_each_writer_has_a_file_and_readers_see_the_rows_of_all(
    tmp_path: Path, opened: Callable[[Path], Location]
) -> None:
    (tmp_path / "run" / "metrics").mkdir(parents=True)
    first, second = MetricsLog(opened(tmp_path)), MetricsLog(opened(tmp_path))
    first.append("epoch", {"step": 1})
    second.append("evaluation", {"step": 1})
    first.append("epoch", {"step": 2})
    rows = read_metrics(opened(tmp_path))
    assert [(row["step"], row["kind"]) for row in rows] == [(1, "epoch"), (1, "evaluation"), (2, "epoch")]
    assert len(list((tmp_path / "run" / "metrics").iterdir())) == 2
    write_merged_metrics(opened(tmp_path), rows)
    merged = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in merged.splitlines()] == rows
    assert read_metrics(opened(tmp_path)) == rows


def test_a_run_without_metrics_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(open_location(tmp_path / "nothing")) == []


@pytest.mark.parametrize("value", [0.123456789, 1e-9, 123456.0])
def test_figures_keep_six_digits(tmp_path: Path, value: float) -> None:
    location = open_location(tmp_path / "run")
    MetricsLog(location).append("epoch", {"step": 1, "x": value})
    assert read_metrics(location)[0]["x"] == pytest.approx(value, rel=1e-5)
