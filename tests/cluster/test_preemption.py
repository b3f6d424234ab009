"""A node of the cluster is announced to go away while a run trains on it (`make kill-campaign-ray`)."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

from cluster.clocks import warn_of_clocks
from cluster.run_marks import StopMark
from cluster.trainer import Resume, TrainingFailed, train
from reid.build.metrics_log import read_metrics
from reid.build.run_folder import RunFolder, open_run
from reid.training.checkpoint import CheckpointStore
from tests.cluster.conftest import tiny_experiment

PREEMPTION = 2
"""`DrainNodeReason` of Ray's protocol."""


def wait_for_row(folder: RunFolder) -> None:
    deadline = time.monotonic() + 200
    while not any(row["kind"] == "interval" for row in read_metrics(folder.location)):
        assert time.monotonic() < deadline, "the run did not begin to train"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_node_that_goes_away_makes_the_run_save_before_it_is_gone(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef0123456789abcdef")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    experiment = tiny_experiment(
        tiny_shards, tmp_path, "training.loop.epochs=100000", "training.loop.log_every_steps=1",
        "training.loop.checkpoint_every_epochs=1000", "evaluation.every_epochs=1000",
    )  # fmt: skip
    folder = open_run(experiment)
    store = CheckpointStore(folder.checkpoints)
    saved: list[list[str]] = []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        node = cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        assert list(warn_of_clocks().values()) == [0.0, 0.0]  # two nodes, one clock

        def announce_the_end_of_the_node() -> None:
            try:
                wait_for_row(folder)
                assert store.names() == []
                deadline_ms = int((time.time() + 120) * 1000)
                gcs = GcsClient(address=cluster.address)
                accepted, why = gcs.drain_node(node.node_id, PREEMPTION, "taken back", deadline_ms)
                assert accepted, why
                until = time.monotonic() + 60
                while not store.names() and time.monotonic() < until:
                    time.sleep(0.2)
                saved.append(store.names())
            finally:
                StopMark(folder.location).put()

        announcer = threading.Thread(target=announce_the_end_of_the_node)
        announcer.start()
        with pytest.raises(TrainingFailed, match=r"stopped at step-\d+, before its last epoch"):
            train(experiment, Resume.NEVER)
        announcer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    ((name,),) = saved
    position = store.load(name).position
    assert 0 < position.step < 6000  # not one of the checkpoints that were asked for
