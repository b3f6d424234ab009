from __future__ import annotations

import json
import logging
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs
import pytest

from reid.build import metrics_log
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


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_rows_wait_for_a_full_disk_and_are_then_written_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(open_location(tmp_path / "run"))
    log.append("interval", {"step": 1})
    (file,) = (tmp_path / "run" / "metrics").iterdir()
    with full_disk(file.stat().st_size + 10):  # the next line is cut after ten bytes
        log.append("interval", {"step": 2})
        log.append("epoch", {"step": 2})
        assert log.failed == 2
        assert caplog.text.count("could not be written") == 1
    log.append("interval", {"step": 3})
    assert [(row["step"], row["kind"]) for row in read_metrics(open_location(tmp_path / "run"))] == [
        (1, "interval"), (2, "epoch"), (2, "interval"), (3, "interval"),
    ]  # fmt: skip
    whole = [json.loads(line)["step"] for line in file.read_text().splitlines() if line.endswith("}")]
    assert whole == [1, 2, 2, 3]
    assert "metrics are written again: 3 row(s) had waited, 0 were lost" in caplog.text
    assert log.failed == 2


def test_rows_wait_for_an_object_store(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics").write_text("in the way")
    log = MetricsLog(remote(tmp_path))
    log.append("interval", {"step": 1})
    log.append("interval", {"step": 2})
    assert log.failed == 2
    (tmp_path / "run" / "metrics").unlink()
    (tmp_path / "run" / "metrics").mkdir()
    log.append("interval", {"step": 3})
    assert [row["step"] for row in read_metrics(remote(tmp_path))] == [1, 2, 3]


def test_the_oldest_rows_give_way_when_too_many_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "ROWS_THAT_WAIT", 2)
    (tmp_path / "run").write_text("in the way")
    log = MetricsLog(open_location(tmp_path / "run"))
    for step in range(4):
        log.append("interval", {"step": step})
    assert log.lost == 2
    (tmp_path / "run").unlink()
    log.append("interval", {"step": 4})
    assert [row["step"] for row in read_metrics(open_location(tmp_path / "run"))] == [3, 4]
    assert log.lost == 3


def test_a_warning_that_writing_causes_becomes_a_row_after_it(tmp_path: Path) -> None:
    """The workers' warnings are rows themselves: of a failing write they must not begin another one."""
    (tmp_path / "run").write_text("in the way")
    log = MetricsLog(open_location(tmp_path / "run"))

    class Rows(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log.append("message", {"step": 0, "text": record.getMessage()})

    handler = Rows(logging.WARNING)
    logging.getLogger("reid").addHandler(handler)
    try:
        log.append("interval", {"step": 1})
        assert log.failed == 1
        (tmp_path / "run").unlink()
        log.append("interval", {"step": 2})
    finally:
        logging.getLogger("reid").removeHandler(handler)
    kinds = [row["kind"] for row in read_metrics(open_location(tmp_path / "run"))]
    assert kinds == ["message", "message", "interval", "interval"]
