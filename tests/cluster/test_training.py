"""Training on a real local Ray, whole: workers, checkpoints, evaluation beside it, report, resume."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch

from cluster.evaluation import evaluate_checkpoint
from cluster.trainer import Resume, train
from reid.build.evaluation import evaluate_here
from reid.build.metrics_log import read_metrics
from reid.build.run_folder import open_run
from reid.training.checkpoint import CheckpointStore
from tests.cluster.conftest import tiny_experiment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def worker_processes() -> list[psutil.Process]:
    """Training worker processes of this test's Ray."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline() or [child.name()])]


def test_a_run_trains_evaluates_reports_and_survives_the_kill_of_a_worker(
    tiny_shards: Path, tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["training.loop.epochs=4", "evaluation.every_epochs=4"]
    undisturbed = tiny_experiment(tiny_shards, tmp_path / "undisturbed", *overrides)
    outcome = train(undisturbed, Resume.NEVER)

    folder = open_run(undisturbed)
    rows = read_metrics(folder.location)
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == [0, 1, 2, 3]
    assert {"loss", "loss/planes", "valid_anchors/top", "gradient_norm", "images_per_second"} <= set(epochs[0])
    assert [row["kind"] for row in rows if row["kind"] == "evaluation"] == ["evaluation"]
    assert 0 < outcome.results[-1].metrics.mAP <= 1
    page = (tmp_path / "undisturbed" / "tiny" / "report" / "index.html").read_text()
    assert "Rank lists" in page
    assert list((tmp_path / "undisturbed" / "tiny" / "tensorboard").iterdir())

    store = CheckpointStore(folder.checkpoints)
    name = store.newest()
    assert name is not None
    here = evaluate_here(undisturbed, folder.checkpoints.child(name)).result
    workers = evaluate_checkpoint(undisturbed, folder.checkpoints.child(name).uri).result
    assert workers.figures() == here.figures()
    assert workers.checkpoint_hash == here.checkpoint_hash

    killed = tiny_experiment(tiny_shards, tmp_path / "killed", *overrides)
    kills: list[int] = []

    def kill_one_worker() -> None:
        checkpoints = tmp_path / "killed" / "tiny" / "checkpoints"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if checkpoints.exists() and any(entry.name.startswith("step-") for entry in checkpoints.iterdir()):
                victims = worker_processes()
                if victims:
                    os.kill(victims[-1].pid, signal.SIGKILL)
                    kills.append(victims[-1].pid)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    train(killed, Resume.NEVER)
    killer.join()

    assert len(kills) == 1
    failures = [record.getMessage() for record in caplog.records if "cluster.max_failures" in record.getMessage()]
    assert len(failures) == 1
    assert re.search(r"(?s)worker: rank [01].*died.*\nfailure 1, .* is 3: the workers start anew", failures[0])
    said = [row["text"] for row in read_metrics(open_run(killed).location) if row["kind"] == "message"]
    assert any("the CPU, from step " in text for text in said)
    expected = store.load(name)
    actual = CheckpointStore(open_run(killed).checkpoints).load(name)
    assert actual.position == expected.position
    for key, value in expected.model.items():
        assert torch.equal(actual.model[key], value), key

    with pytest.raises(ValueError, match=r"--resume never: .* already holds"):
        train(killed, Resume.NEVER)
    other = tiny_experiment(tiny_shards, tmp_path / "killed", *overrides, "training.optimizer.learning_rate=0.5")
    with pytest.raises(ValueError, match=r"learning_rate: 0.00035 in the checkpoint, 0.5 now"):
        train(other, Resume.AUTO)


def test_a_run_continues_on_another_number_of_workers(tiny_shards: Path, tmp_path: Path, local_ray: None) -> None:
    two = tiny_experiment(tiny_shards, tmp_path, "training.loop.epochs=1", "training.schedule.per_step=false")
    train(two, Resume.NEVER)
    one = tiny_experiment(tiny_shards, tmp_path, "training.loop.epochs=2", "cluster.num_workers=1")
    train(one, Resume.MUST)
    rows = [row for row in read_metrics(open_run(one).location) if row["kind"] == "epoch"]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert np.isfinite(rows[-1]["loss"])
    # Each epoch was trained once, by the workers of its own run.
    parts = sorted((tmp_path / "tiny" / "metrics").iterdir())
    written = [[json.loads(line) for line in part.read_text().splitlines()] for part in parts]
    trained = [{row["epoch"] for row in part if row["kind"] == "interval"} for part in written]
    assert [epochs for epochs in trained if epochs] == [{0}, {1}]


def test_what_the_cluster_cannot_run_is_refused_with_the_arithmetic(
    tiny_shards: Path, tmp_path: Path, local_ray: None
) -> None:
    with pytest.raises(ValueError, match=r"4 workers x 9 CPU\(s\) = 36 CPUs, but the cluster has 3"):
        train(tiny_experiment(tiny_shards, tmp_path, "cluster.num_workers=4", "cluster.cpus_per_worker=9"))
    with pytest.raises(ValueError, match="global batch 8 = 4 identities x 2 images is not divisible by 3 workers"):
        train(tiny_experiment(tiny_shards, tmp_path, "cluster.num_workers=3"))


def test_our_own_ray_listens_on_loopback_only_and_wants_a_token(local_ray: None) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    own = {child.pid for child in psutil.Process().children(recursive=True)}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in own]
    assert listening
    assert {c.laddr.ip for c in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert ray.is_initialized()
