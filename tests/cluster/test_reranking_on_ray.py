"""Re-ranking on evaluation workers gives the figures of one process, whatever the number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.evaluation import EvaluationFailed, evaluate_checkpoint
from reid.build.evaluation import evaluate_here
from reid.build.run_folder import open_run
from reid.config import Experiment, with_overrides
from reid.storage import Location
from reid.training.checkpoint import CheckpointStore
from tests.cluster.conftest import tiny_experiment
from tests.training_runs import train


@pytest.fixture(scope="module")
def trained(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Location]:
    runs = tmp_path_factory.mktemp("reranking")
    experiment = tiny_experiment(tiny_shards, runs, "cluster.num_workers=1", "model.planes=null")
    train(experiment)
    folder = open_run(experiment)
    name = CheckpointStore(folder.checkpoints).newest()
    assert name is not None
    return experiment, folder.checkpoints.child(name)


@pytest.mark.parametrize(("protocol", "weight"), [("veri776", 0.3), ("cross-camera", 0.3), ("veri776", 1.0)])
def test_workers_give_the_figures_of_one_process(
    trained: tuple[Experiment, Location], local_ray: None, protocol: str, weight: float
) -> None:
    experiment, checkpoint = trained
    experiment = with_overrides(
        experiment,
        [f"evaluation.protocol={protocol}", f"evaluation.rerank={{k1: 5, k2: 2, weight: {weight}}}"],
    )
    expected = evaluate_here(experiment, checkpoint).result.figures()
    assert (expected["mAP"] == expected["mAP+RR"]) == (weight == 1)
    for workers in (1, 3):
        spread = with_overrides(experiment, [f"cluster.evaluation_workers={workers}"])
        assert evaluate_checkpoint(spread, checkpoint.uri).result.figures() == expected


def test_too_few_images_are_named_before_anything_is_embedded(
    trained: tuple[Experiment, Location], local_ray: None
) -> None:
    experiment = with_overrides(trained[0], ["evaluation.rerank={k1: 500}"])
    with pytest.raises(EvaluationFailed, match="got k1 500; lower"):
        evaluate_checkpoint(experiment, trained[1].uri)
