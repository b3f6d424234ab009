"""A small packed data set and a local Ray for the tests of this folder."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.resources import ray_connection
from reid.config import Experiment, load_experiment
from tests.synthetic_shards import pack_synthetic, small_config


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a dozen synthetic vehicles."""
    return pack_synthetic(tmp_path_factory.mktemp("tiny"), small_config(12, 4, 4), "tiny")


def tiny_experiment(shards: Path, runs: Path, *overrides: str) -> Experiment:
    """A run of seconds: ResNet-18 at 32 px, float32, one thread a worker."""
    return load_experiment(
        None,
        [
            "name=tiny",
            f"runs={runs}",
            f"data.shards={shards}",
            "data.transform.height=32",
            "data.transform.width=32",
            "data.transform.padding=2",
            "data.plan.identities_per_batch=4",
            "data.plan.images_per_identity=2",
            "model.backbone.name=resnet18",
            "training.step.precision=float32",
            "training.loop.epochs=2",
            "training.loop.log_every_steps=2",
            "training.schedule.warmup_epochs=1",
            "evaluation.every_epochs=2",
            "evaluation.num_rank_lists=3",
            "cluster.num_workers=2",
            "cluster.evaluation_workers=2",
            "cluster.cpus_per_evaluation_worker=0",
            *overrides,
        ],
    )


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray for all tests that do not kill it."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_connection(num_cpus=3):
            yield
        warnings.simplefilter("ignore", ResourceWarning)  # Ray forgets its processes before they are gone
        gc.collect()
