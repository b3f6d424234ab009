"""Ways in which a run on a real local Ray ends before its last epoch: interrupted, refused by its workers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.run_marks import EndMark, GivenUp, StopMark
from cluster.trainer import TrainingFailed, train
from reid.build.metrics_log import read_metrics
from reid.build.run_folder import RunFolder, open_run
from reid.config import Experiment
from reid.contracts import DataError
from reid.data.shard_set import open_shards
from reid.settings_file import to_yaml
from reid.storage import exists, open_location
from reid.training.checkpoint import CheckpointStore
from tests.cluster.conftest import tiny_experiment
from tests.processes import kill_with_descendants
from tests.s3_server import s3_server

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bucket() -> Iterator[str]:
    """Address of an empty bucket of an S3 server on this machine."""
    with s3_server("runs"):
        yield "s3://runs"


def start(experiment: Experiment, folder: Path, *options: str) -> subprocess.Popen[str]:
    """A driver with a Ray of its own, whose workers inherit the address of the bucket."""
    config = folder / "config.yaml"
    config.write_text(to_yaml(experiment))
    command = [sys.executable, "jobs/train_ppt.py", "--config", str(config), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_row(folder: RunFolder, driver: subprocess.Popen[str], step: int = 1) -> None:
    deadline = time.monotonic() + 240
    while not any(row["kind"] == "interval" and row["step"] >= step for row in read_metrics(folder.location)):
        assert driver.poll() is None, driver.communicate()[1][-2000:]
        assert time.monotonic() < deadline, "the run did not begin to train"
        time.sleep(0.5)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_terminated_run_on_an_object_store_saves_inside_its_epoch_and_continues_there_after_a_kill_too(
    tiny_shards: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    overrides = [f"runs={bucket}", "cluster.num_workers=1", "training.loop.log_every_steps=1"]
    long = ["training.loop.epochs", "training.loop.checkpoint_every_epochs", "evaluation.every_epochs"]
    endless = tiny_experiment(tiny_shards, tmp_path, *overrides, *(f"{key}=100000" for key in long))
    folder = open_run(endless)
    with start(endless, tmp_path) as driver:
        wait_for_row(folder, driver)
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate()
    assert driver.returncode == 143, said
    assert "the workers finish their step and save a checkpoint" in said

    store = CheckpointStore(folder.checkpoints)
    name = store.newest()
    assert name is not None
    position = store.load(name).position
    intervals = [row["step"] for row in read_metrics(folder.location) if row["kind"] == "interval"]
    assert position.step == max(intervals)  # the last step taken is the one that was saved
    assert not StopMark(folder.location).is_there()

    with start(endless, tmp_path, "--resume", "must") as driver:
        wait_for_row(folder, driver, position.step + 1)
        kill_with_descendants(driver)  # a driver that dies tells nobody
    assert store.newest() == name  # what was committed before is there and sound

    last = tiny_experiment(tiny_shards, tmp_path, *overrides, f"training.loop.epochs={position.epoch + 1}")
    with start(last, tmp_path, "--resume", "must") as driver:
        _, said = driver.communicate()
    assert driver.returncode == 0, said
    steps = [row["step"] for row in read_metrics(folder.location) if row["kind"] == "interval"]
    assert steps == list(range(1, max(steps) + 1))
    assert exists(folder.report.child("index.html"))
    assert "report: s3://runs/tiny/report" in said


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_what_a_worker_refuses_is_not_tried_again_and_again(
    tiny_shards: Path, tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"no weights")
    experiment = tiny_experiment(
        tiny_shards, tmp_path, f"model.backbone.weights={damaged}", "cluster.num_workers=1", "cluster.max_failures=50"
    )
    with pytest.raises(ValueError, match=r"rank 0 on .*: .*damaged\.pth is not a state dict"):
        train(experiment)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_loss_that_stays_non_finite_ends_the_run_the_first_time(
    tiny_shards: Path, tmp_path: Path, local_ray: None
) -> None:
    hopeless = ["training.optimizer.learning_rate=1e30", "training.step.max_consecutive_nonfinite=3"]
    experiment = tiny_experiment(
        tiny_shards, tmp_path, *hopeless, "cluster.num_workers=1", "cluster.max_failures=50", "training.loop.epochs=50"
    )
    with pytest.raises(TrainingFailed, match=r"given up: rank 0 on .*: 3 updates in a row .* Lower the learning rate"):
        train(experiment)
    folder = tmp_path / "tiny"
    (report,) = folder.glob("nonfinite-step-*-rank-0.json")
    content = json.loads(report.read_text())
    assert "updates in a row" in content["reason"]
    with open_shards(tiny_shards) as shards:
        assert set(content["batches"][-1]["keys"]) <= set(shards.index.key)
    # One group of workers trained; the one after it ended at once.
    assert sum(bool(path.read_text()) for path in (folder / "metrics").iterdir()) == 1


@pytest.mark.parametrize("kind", [DataError, ValueError])
def test_a_refusal_keeps_its_kind_and_its_text(tmp_path: Path, kind: type[ValueError]) -> None:
    mark = EndMark(open_location(tmp_path))
    assert mark.error() is None
    mark.put(kind("shard 3 is damaged"), rank=2)
    error = mark.error()
    assert type(error) is kind
    assert str(error) == f"rank 2 on {socket.gethostname()}: shard 3 is damaged"
    mark.remove()
    assert mark.error() is None


def test_a_mark_that_cannot_be_written_does_not_hide_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    EndMark(open_location(tmp_path / "file")).put(ValueError("wrong"), rank=0)


def test_a_worker_that_gives_up_is_told_apart_from_a_refusal_and_its_advice_is_kept(tmp_path: Path) -> None:
    mark = EndMark(open_location(tmp_path))
    exhausted = torch.OutOfMemoryError("CUDA out of memory")
    exhausted.add_note("32 images of 256x256 per worker")
    mark.put(exhausted, rank=1)
    error = mark.error()
    assert isinstance(error, GivenUp)
    assert str(error) == f"rank 1 on {socket.gethostname()}: CUDA out of memory\n32 images of 256x256 per worker"
