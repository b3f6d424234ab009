"""PMANet killed between two steps: learned loss weights and all else go on to the same bits."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import torch

from reid.build.run_folder import open_run
from reid.config import PMNetExperiment, load_experiment
from reid.training.checkpoint import CheckpointStore
from tests.synthetic_shards import pack_synthetic, small_config
from tests.training_runs import assert_same_bits, train

SECONDS_TO_WAIT = 120.0


def experiment_on(shards: Path, runs: Path) -> PMNetExperiment:
    return load_experiment(
        None,
        [
            f"runs={runs}", f"data.shards={shards}", "data.plan.identities_per_batch=3",
            "data.plan.images_per_identity=2", "data.transform.height=32", "data.transform.width=32",
            "model.backbone.name=resnet18", "model.part_head.num_parts=2", "model.part_head.branch_channels=16",
            "model.global_head.channels=16", "training.step.precision=float32", "training.loop.epochs=4",
            "training.loop.checkpoint_every_steps=1", "evaluation.every_epochs=1",
            "training.loop.hang_after_seconds=null", "training.optimizer.loss_weight_rate=100",
            "loss.uncertainty_from_epoch=1", "loss.fixed_weights=[2,1,1,1,1]",
        ],
        PMNetExperiment,
    )  # fmt: skip


def live(shards: Path, runs: Path) -> None:
    """One life of the run, in a process of its own."""
    torch.set_num_threads(1)
    train(experiment_on(shards, runs))


def test_a_killed_run_ends_in_the_bits_of_a_calm_one(tmp_path: Path) -> None:
    shards = pack_synthetic(tmp_path, small_config(num_train_identities=6, num_test_identities=2, num_cameras=3), "six")
    calm, fire = (experiment_on(shards, tmp_path / name) for name in ("calm", "fire"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(calm)
        store = CheckpointStore(open_run(fire).checkpoints)
        life = multiprocessing.get_context("spawn").Process(target=live, args=(shards, tmp_path / "fire"), daemon=True)
        life.start()
        began = time.monotonic()
        while len(store.names()) < 2:  # the first epoch is over: loss weights have begun to move
            assert life.is_alive(), "the run ended by itself"
            assert time.monotonic() - began < SECONDS_TO_WAIT, "no checkpoint came"
            time.sleep(0.01)
        life.kill()
        life.join()
        killed_at = store.newest_position()
        assert killed_at is not None
        train(fire)
    finally:
        torch.set_num_threads(threads)
    expected_store = CheckpointStore(open_run(calm).checkpoints)
    name = expected_store.newest()
    assert name is not None
    assert store.newest() == name
    expected, actual = expected_store.load(name), store.load(name)
    assert (expected.model["log_variances"] != 0).all()
    assert_same_bits(expected, actual)
