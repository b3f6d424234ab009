"""`make kill-campaign-ray`: workers and drivers on local Ray are killed; the run ends as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from reid.build.run_folder import open_run
from reid.config import Experiment
from reid.settings_file import to_yaml
from reid.training.checkpoint import CheckpointStore
from tests.cluster.conftest import tiny_experiment
from tests.processes import kill_with_descendants

ROOT = Path(__file__).parents[2]
EPOCHS = 12


def start(experiment: Experiment, folder: Path) -> subprocess.Popen[bytes]:
    """A driver with a Ray of its own, in a process group of its own."""
    config = folder / f"{experiment.name}.yaml"
    config.write_text(to_yaml(experiment))
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "jobs/train_ppt.py", "--config", str(config)],
            cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def workers_of(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_five_kills_of_workers_and_drivers_lose_nothing(tiny_shards: Path, tmp_path: Path) -> None:
    overrides = [
        f"training.loop.epochs={EPOCHS}",
        f"evaluation.every_epochs={EPOCHS}",
        "training.loop.checkpoint_every_steps=3",
    ]
    undisturbed = tiny_experiment(tiny_shards, tmp_path, *overrides, "name=undisturbed")
    killed = tiny_experiment(tiny_shards, tmp_path, *overrides, "name=killed")
    with start(undisturbed, tmp_path) as driver:
        assert driver.wait() == 0, (tmp_path / "driver.log").read_text()[-2000:]

    generator = random.Random(0)
    kills: list[str] = []
    newest_seen = -1
    driver = start(killed, tmp_path)
    store = CheckpointStore(open_run(killed).checkpoints)
    for number, victim in enumerate(["worker", "driver", "worker", "driver", "worker"]):
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            steps = [int(name.rsplit("-", 1)[-1]) for name in store.names()]
            workers = workers_of(driver) if driver.poll() is None else []
            if workers and steps and max(steps) > newest_seen:
                newest_seen = max(steps)
                break
            time.sleep(0.05)
        assert driver.poll() is None, f"the run ended after {number} kills"
        time.sleep(generator.uniform(0.0, 1.0))
        committed = store.newest()
        assert committed is not None
        if victim == "worker":
            os.kill(generator.choice(workers).pid, signal.SIGKILL)
        else:
            kill_with_descendants(driver)
            driver = start(killed, tmp_path)
        kills.append(victim)
        # What was committed before the kill, or something newer, is still there and sound.
        survivor = store.newest()
        assert survivor is not None
        assert survivor >= committed
    assert driver.wait() == 0, (tmp_path / "driver.log").read_text()[-2000:]
    assert kills == ["worker", "driver", "worker", "driver", "worker"]

    expected_store = CheckpointStore(open_run(undisturbed).checkpoints)
    name = expected_store.newest()
    assert name is not None
    expected, actual = expected_store.load(name), store.load(name)
    assert actual.position == expected.position
    for key, value in expected.model.items():
        assert torch.equal(actual.model[key], value), key
    for key, value in expected.optimizer.tensors.items():
        assert torch.equal(actual.optimizer.tensors[key], value), key
