"""Ways in which a run on a real local Ray ends before its last epoch: interrupted, refused by its workers."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from cluster.resources import ray_connection
from cluster.run_marks import RefusalMark, StopMark
from cluster.trainer import Resume, train
from reid.build.metrics_log import read_metrics
from reid.build.run_folder import RunFolder, open_run
from reid.contracts import DataError
from reid.storage import exists, open_location
from reid.training.checkpoint import CheckpointStore
from tests.cluster.conftest import tiny_experiment


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an empty bucket of an S3 server on this machine."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fs.S3FileSystem(
        endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
    ).create_dir("runs")
    yield "s3://runs"
    server.stop()


def interrupt_when_it_trains(folder: RunFolder) -> threading.Thread:
    """Presses Ctrl-C on this process once the run has written a row."""

    def press() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(row["kind"] == "interval" for row in read_metrics(folder.location)):
                break
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_an_interrupted_run_on_an_object_store_saves_inside_its_epoch_and_continues_there(
    tiny_shards: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    overrides = [f"runs={bucket}", "cluster.num_workers=1", "training.loop.log_every_steps=1"]
    endless = tiny_experiment(tiny_shards, Path("unused"), *overrides, "training.loop.epochs=100000")
    folder = open_run(endless)
    with ray_connection(num_cpus=2):  # its workers inherit the address of the bucket
        presser = interrupt_when_it_trains(folder)
        with pytest.raises(KeyboardInterrupt):
            train(endless, Resume.NEVER)
        presser.join()

        store = CheckpointStore(folder.checkpoints)
        name = store.newest()
        assert name is not None
        position = store.load(name).position
        intervals = [row["step"] for row in read_metrics(folder.location) if row["kind"] == "interval"]
        assert position.step == max(intervals)  # the last step taken is the one that was saved
        assert not StopMark(folder.location).is_there()

        last = tiny_experiment(tiny_shards, Path("unused"), *overrides, f"training.loop.epochs={position.epoch + 1}")
        outcome = train(last, Resume.MUST)
    steps = [row["step"] for row in read_metrics(folder.location) if row["kind"] == "interval"]
    assert steps == list(range(1, max(steps) + 1))
    assert outcome.report.startswith("s3://runs/tiny/report")
    assert exists(open_location(outcome.report))


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_what_a_worker_refuses_is_not_tried_again_and_again(
    tiny_shards: Path, tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    missing = tmp_path / "missing.pth"
    experiment = tiny_experiment(
        tiny_shards, tmp_path, f"model.backbone.weights={missing}", "cluster.num_workers=1", "cluster.max_failures=50"
    )
    with pytest.raises(ValueError, match=r"rank 0: backbone\.weights=.*missing\.pth.*does not exist"):
        train(experiment)


def test_a_refusal_keeps_its_kind_and_its_text(tmp_path: Path) -> None:
    mark = RefusalMark(open_location(tmp_path))
    assert mark.error() is None
    mark.put(DataError("shard 3 is damaged"), rank=2)
    error = mark.error()
    assert isinstance(error, DataError)
    assert str(error) == "rank 2: shard 3 is damaged"
    mark.remove()
    assert mark.error() is None
