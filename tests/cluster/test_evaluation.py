"""The evaluation of a checkpoint on evaluation workers, and what it is given up for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.evaluation import EvaluationFailed, evaluate_checkpoint, evaluate_occluded
from cluster.trainer import evaluate_run
from cluster.trainer import train as train_on_cluster
from reid.build.run_folder import open_run
from reid.config import Experiment, with_overrides
from reid.storage import Location
from reid.training.checkpoint import CheckpointStore
from tests.cluster.conftest import tiny_experiment
from tests.training_runs import train

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def trained(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Location]:
    overrides = ["cluster.num_workers=1", "cluster.evaluation_workers=1", "model.planes=null"]
    experiment = tiny_experiment(tiny_shards, tmp_path_factory.mktemp("evaluation"), *overrides)
    train(experiment)
    folder = open_run(experiment)
    name = CheckpointStore(folder.checkpoints).newest()
    assert name is not None
    return experiment, folder.checkpoints.child(name)


def test_an_evaluation_that_runs_too_long_is_given_up(trained: tuple[Experiment, Location], local_ray: None) -> None:
    hurried = with_overrides(trained[0], ["cluster.evaluation_timeout_seconds=0.001"])
    with pytest.raises(EvaluationFailed, match=r"not done after running for 0.001 s"):
        evaluate_checkpoint(hurried, trained[1].uri)
    with pytest.raises(EvaluationFailed, match=r"not done after running for 0.001 s"):
        evaluate_occluded(hurried, trained[1].uri, [0.2], seed=0)


def test_a_protocol_that_the_data_set_lacks_is_refused_before_training(tiny_shards: Path, tmp_path: Path) -> None:
    experiment = tiny_experiment(tiny_shards, tmp_path, "evaluation.protocol=vehicleid-small")
    with pytest.raises(ValueError, match="protocol 'vehicleid-small'"):
        train_on_cluster(experiment)
    with pytest.raises(ValueError, match="protocol 'vehicleid-small'"):
        evaluate_run(experiment)
    assert not list(tmp_path.iterdir())  # nothing was begun
