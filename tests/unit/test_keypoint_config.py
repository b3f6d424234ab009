from __future__ import annotations

from pathlib import Path

import pytest

from reid.config import (
    Experiment,
    KeypointExperiment,
    experiment_of,
    load_experiment,
    with_overrides,
)
from reid.settings_file import ConfigError, to_yaml


def test_the_detectors_defaults_are_the_papers_and_those_of_ppt_stay() -> None:
    experiment = load_experiment(None, [], KeypointExperiment)
    assert (experiment.model.num_stacks, experiment.model.num_blocks, experiment.model.channels) == (8, 1, 256)
    optimizer, loop = experiment.training.optimizer, experiment.training.loop
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay, loop.epochs) == ("rmsprop", 2.5e-4, 0.0, 6)
    assert (experiment.loss.sigma, experiment.loss.invisible, experiment.evaluation.threshold) == (1.0, "zero", 0.3)
    assert experiment.data.transform.height == 256
    plain = load_experiment(None)
    assert (plain.training.optimizer.name, plain.data.transform.warp, plain.data.transform.degradation) == (
        "adam", None, None,
    )  # fmt: skip


def test_a_file_that_changes_one_number_of_a_section_keeps_the_rest_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: keypoints\ntraining:\n  optimizer: {learning_rate: 1e-3}\n")
    experiment = load_experiment(path, ["data.transform.warp.rotation_degrees=5"], KeypointExperiment)
    assert (experiment.training.optimizer.name, experiment.training.optimizer.learning_rate) == ("rmsprop", 1e-3)
    warp = experiment.data.transform.warp
    assert warp is not None
    assert (warp.rotation_degrees, warp.scale) == (5, (0.75, 1.25))
    off = load_experiment(path, ["data.transform.warp=null"], KeypointExperiment)
    assert off.data.transform.warp is None


def test_every_kind_of_run_comes_back_from_its_plain_data_and_its_file(tmp_path: Path) -> None:
    detector = load_experiment(None, ["seed=4", "data.transform.warp=null"], KeypointExperiment)
    assert experiment_of(detector.model_dump(mode="json")) == detector
    assert experiment_of(Experiment().model_dump(mode="json")) == Experiment()
    older = Experiment().model_dump(mode="json")
    del older["task"]
    older["data"]["cache"]["max_open_shards"] = 64
    assert experiment_of(older) == Experiment()
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(detector))
    assert load_experiment(path, [], KeypointExperiment) == detector
    assert with_overrides(detector, ["seed=5"]).seed == 5


def test_a_file_of_another_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: keypoints\n")
    with pytest.raises(ConfigError, match=r"task: .*'ppt', got 'keypoints'"):
        load_experiment(path)
    with pytest.raises(ConfigError, match=r"data\.plan\.identities_per_batch: unknown key"):
        load_experiment(None, ["data.plan.identities_per_batch=4"], KeypointExperiment)


def test_an_option_that_the_optimiser_ignores_is_refused() -> None:
    for override, said in (("momentum=0.5", "momentum"), ("betas=[0.5,0.9]", "betas")):
        with pytest.raises(ConfigError, match=f"optimizer 'rmsprop' has no {said}"):
            load_experiment(None, [f"training.optimizer.{override}"], KeypointExperiment)
    with pytest.raises(ConfigError, match="optimizer 'adam' has no square_decay"):
        load_experiment(None, ["training.optimizer.square_decay=0.9"])
