"""Occluded queries on evaluation workers: the figures of one process, and errors in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.evaluation import EvaluationFailed, evaluate_occluded
from reid.build.occlusion import evaluate_occluded_here
from reid.build.run_folder import open_run
from reid.config import with_overrides
from reid.training.checkpoint import CheckpointStore
from tests.cluster.conftest import tiny_experiment
from tests.training_runs import train


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_workers_occlude_as_one_process_does(tiny_shards: Path, tmp_path: Path) -> None:
    experiment = tiny_experiment(
        tiny_shards, tmp_path, "training.loop.epochs=1", "training.schedule.warmup_epochs=0", "cluster.num_workers=1"
    )
    train(experiment)
    checkpoints = open_run(experiment).checkpoints
    checkpoint = checkpoints.child(CheckpointStore(checkpoints).newest() or "")
    expected = evaluate_occluded_here(experiment, checkpoint, [0.1, 0.3], 7)
    actual = evaluate_occluded(experiment, checkpoint.uri, [0.1, 0.3], 7)
    assert [found.result.figures() for found in actual] == [found.result.figures() for found in expected]
    assert [found.patches for found in actual] == [found.patches for found in expected]
    assert len({str(found.result.figures()) for found in actual}) == 3

    other = with_overrides(experiment, ["evaluation.protocol=vehicleid-small"])
    with pytest.raises(EvaluationFailed, match="no image of split 'test' is in subset 'small'"):
        evaluate_occluded(other, checkpoint.uri, [0.1], 0)
