"""PMANet's two networks on a real local Ray: PANet on two workers, its parts into the shards, PMANet through a kill."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from cluster.trainer import Resume, train
from jobs import add_masks
from reid.build.metrics_log import read_metrics
from reid.build.run_folder import open_run
from reid.config import AnyExperiment, PANetExperiment, PMNetExperiment, load_experiment
from reid.data.shard_set import open_shards
from reid.training.checkpoint import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

COMMON = [
    "data.plan.identities_per_batch=4", "data.plan.images_per_identity=2", "data.transform.padding=2",
    "model.backbone.name=resnet18", "training.step.precision=float32", "training.loop.log_every_steps=1",
    "cluster.num_workers=2", "cluster.cpus_per_evaluation_worker=0", "evaluation.num_rank_lists=2",
]  # fmt: skip


def newest(experiment: AnyExperiment) -> str:
    folder = open_run(experiment).checkpoints
    return folder.child(CheckpointStore(folder).newest() or "none").uri


def kill_a_worker_after(checkpoints: Path, kills: list[int]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not kills:
        if checkpoints.exists() and any(entry.name.startswith("step-") for entry in checkpoints.iterdir()):
            for child in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(child.cmdline() or [child.name()]):
                    os.kill(child.pid, signal.SIGKILL)
                    kills.append(child.pid)
                    return
        time.sleep(0.02)


def test_panet_locates_parts_and_pmanet_learns_from_them_through_a_kill(
    tiny_shards: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    panet = load_experiment(
        None,
        [
            *COMMON, "name=panet", f"runs={tmp_path}", f"data.shards={tiny_shards}", "data.transform.height=64",
            "data.transform.width=64", "training.loop.epochs=1", "evaluation.every_epochs=1",
        ],
        PANetExperiment,
    )  # fmt: skip
    train(panet)
    command = ["add_masks.py", "--panet", newest(panet), str(tiny_shards), str(tmp_path / "parts"), "parts.num_parts=2"]
    monkeypatch.setattr(sys, "argv", command)
    assert add_masks.main() == 0
    with open_shards(tmp_path / "parts") as shards:
        assert shards.manifest.additions[-1].name == "parts"
        assert shards.manifest.additions[-1].members["boxes.json"] == len(shards.index)

    pmanet = load_experiment(
        None,
        [
            *COMMON, "name=pmanet", f"runs={tmp_path}", f"data.shards={tmp_path / 'parts'}", "data.transform.height=32",
            "data.transform.width=32", "model.global_head.channels=16", "model.part_head.num_parts=2",
            "model.part_head.branch_channels=16", "model.planes={}", "loss.uncertainty_from_epoch=1",
            "training.loop.epochs=4", "evaluation.every_epochs=4", "evaluation.partial_tasks=true",
        ],
        PMNetExperiment,
    )  # fmt: skip
    kills: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(tmp_path / "pmanet" / "checkpoints", kills))
    killer.start()
    outcome = train(pmanet, Resume.NEVER)
    killer.join()
    assert len(kills) == 1
    rows = read_metrics(open_run(pmanet).location)
    weights = {row["epoch"]: row["weight/global"] for row in rows if row["kind"] == "epoch"}
    # The kill may have come between the first checkpoint and the row that says so.
    assert weights.keys() | {0} == {0, 1, 2, 3}
    assert weights.get(0, 1.0) == 1.0
    assert weights[3] != 1.0
    (result,) = outcome.results
    assert "partial tasks" in " ".join(result.notes)
