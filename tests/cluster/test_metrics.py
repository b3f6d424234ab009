"""Figures for Prometheus and TensorBoard, without a cluster."""

from __future__ import annotations

import re
import resource
import socket
import urllib.request
from pathlib import Path

import pyarrow.fs
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cluster.metrics
from cluster.metrics import DriverMetrics, TensorBoardLog
from reid.config import MetricsConfig
from reid.storage import Location, open_location


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_the_driver_publishes_progress_and_evaluation(free_port: int) -> None:
    metrics = DriverMetrics(MetricsConfig(prometheus_port=free_port), "run-a")
    try:
        metrics.epoch(3)
        metrics.evaluation({"mAP": 0.625, "R1": 0.75})
        metrics.evaluation_failed()
        text = page(free_port)
    finally:
        metrics.close()
    assert 'reid_epoch{run="run-a"} 3.0' in text
    assert 'reid_evaluation{figure="mAP",run="run-a"} 0.625' in text
    assert 'reid_evaluations_failed_total{run="run-a"} 1.0' in text
    with pytest.raises(OSError, match="refused"):
        page(free_port)


def test_the_next_free_port_is_taken_and_said(free_port: int, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        metrics = DriverMetrics(MetricsConfig(prometheus_port=free_port), "run")
        try:
            metrics.epoch(2)
            said = re.search(r"endpoint: http://127\.0\.0\.1:(\d+)/metrics \(port (\d+) is in use\)", caplog.text)
            assert said is not None
            assert int(said[2]) == free_port < int(said[1])
            assert 'reid_epoch{run="run"} 2.0' in page(int(said[1]))
        finally:
            metrics.close()


def test_an_endpoint_that_cannot_be_had_never_stops_a_run(
    free_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.metrics, "PORTS_TO_TRY", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        DriverMetrics(MetricsConfig(prometheus_port=free_port), "run").close()
    assert f"no Prometheus endpoint on port {free_port}" in caplog.text
    DriverMetrics(MetricsConfig(prometheus_port=free_port, prometheus_host="192.0.2.1"), "run").close()
    assert "Cannot assign requested address" in caplog.text


def test_no_port_means_no_endpoint(free_port: int) -> None:
    DriverMetrics(MetricsConfig(), "run").close()
    with pytest.raises(OSError, match="refused"):
        page(free_port)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_events_hold_the_numeric_figures(tmp_path: Path) -> None:
    log = TensorBoardLog(MetricsConfig(), open_location(tmp_path))
    log.add({"loss": 2.5, "step": 10, "checkpoint": "step-00000010", "finished_epoch": True}, 10, "train")
    log.add({"loss": 1.5}, 20, "train")
    log.close()
    assert scalars(tmp_path, "train/loss") == [(10, 2.5), (20, 1.5)]


def test_tensorboard_events_reach_an_object_store(tmp_path: Path) -> None:
    filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    (tmp_path / "run").mkdir()
    log = TensorBoardLog(MetricsConfig(), Location(filesystem, "run", "s3://bucket/run"))
    log.add({"loss": 2.5}, 10, "train")
    log.close()
    assert scalars(tmp_path / "run", "train/loss") == [(10, 2.5)]


def test_tensorboard_can_be_switched_off(tmp_path: Path) -> None:
    log = TensorBoardLog(MetricsConfig(tensorboard=False), open_location(tmp_path / "none"))
    log.add({"loss": 2.5}, 10, "train")
    log.flush()
    log.close()
    assert not (tmp_path / "none").exists()


def test_figures_wait_until_tensorboard_events_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "events").write_text("in the way")
    log = TensorBoardLog(MetricsConfig(), open_location(tmp_path / "events"))
    for step in (10, 20):
        log.add({"loss": 2.5}, step, "train")
        log.flush()
    assert log.failed == 2
    assert caplog.text.count("TensorBoard events could not be written") == 1
    (tmp_path / "events").unlink()
    log.add({"loss": 1.5}, 30, "train")
    log.close()
    assert scalars(tmp_path / "events", "train/loss") == [(10, 2.5), (20, 2.5), (30, 1.5)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_up_costs_no_figures(tmp_path: Path) -> None:
    log = TensorBoardLog(MetricsConfig(), open_location(tmp_path))
    log.add({"loss": 3.5}, 10, "train")
    log.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (next(tmp_path.iterdir()).stat().st_size + 10, before[1]))
    try:
        log.add({"loss": 2.5}, 20, "train")
        log.flush()
        assert log.failed == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.add({"loss": 1.5}, 30, "train")
    log.close()
    assert scalars(tmp_path, "train/loss") == [(10, 3.5), (20, 2.5), (30, 1.5)]
