from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from reid.config import (
    FREE_KEYS,
    Experiment,
    KeypointExperiment,
    PANetExperiment,
    PMNetExperiment,
    digest,
    digestible,
    load_experiment,
)
from reid.contracts import flatten
from reid.settings_file import ConfigError, parse_yaml, to_yaml

CONFIGS = sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers() -> None:
    experiment = load_experiment(None)
    assert experiment.data.plan.identities_per_batch == 16
    assert experiment.data.plan.images_per_identity == 4
    assert (experiment.data.transform.height, experiment.data.transform.padding) == (256, 10)
    assert experiment.training.optimizer.learning_rate == 3.5e-4
    assert experiment.training.optimizer.weight_decay == 5e-4
    assert experiment.training.loop.epochs == 240
    assert experiment.loss.planes.plane_weights == (0.5, 0.5, 0.3, 0.2)
    assert experiment.loss.label_smoothing == 0.1
    assert experiment.model.backbone.name == "resnet50"


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 3\ntraining:\n  loop: {epochs: 7}\n")
    experiment = load_experiment(path, ["training.loop.epochs=9", "model.planes=null"])
    assert experiment.seed == 3
    assert experiment.training.loop.epochs == 9
    assert experiment.model.planes is None


def test_all_problems_are_shown_at_once_with_their_paths(tmp_path: Path) -> None:
    path = write(tmp_path, "sed: 1\ntraining:\n  loop: {epochs: many}\n  optimizer: {learning_rat: 1e-3}\n")
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, ["data.plan.identities_per_batch=-4"])
    text = str(caught.value)
    assert "sed: unknown key; did you mean 'seed'?" in text
    assert "training.optimizer.learning_rat: unknown key; did you mean 'learning_rate'?" in text
    assert "training.loop.epochs" in text
    assert "'many'" in text
    assert "data.plan.identities_per_batch" in text
    assert len(caught.value.problems) == 4


def test_an_error_crosses_processes_whole() -> None:
    expected = ConfigError(["a: wrong", "b: unknown"], "run.yaml")
    actual = pickle.loads(pickle.dumps(expected))
    assert isinstance(actual, ConfigError)
    assert (str(actual), actual.problems) == (str(expected), ("a: wrong", "b: unknown"))


def test_a_key_of_another_section_is_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"epochs: unknown key; did you mean 'training\.loop\.epochs'"):
        load_experiment(write(tmp_path, "epochs: 3\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "line 2, column 1: key 'seed' is given twice"),
        ("seed: [1\n", "line"),
        ("- 1\n", "expected a mapping of settings, got list"),
        ("", "sets nothing: leave it out for the defaults"),
        ("# seed: 1\n", "sets nothing: leave it out for the defaults"),
        ("seed: 1\n\tname: x\n", "line 2, column 1: found character"),
        ("[" * 3000, "nested too deeply"),
        ("seed: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    ],
)
def test_bad_yaml_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(write(tmp_path, text))


def test_a_file_that_is_no_text_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: .*\n.*no UTF-8 text \(byte 9\)"):
        load_experiment(tmp_path / "run.yaml")


def test_a_switch_in_the_place_of_a_number_is_refused() -> None:
    wrong = ["training.loop.epochs=true", "training.optimizer.learning_rate=true", "seed=false", "name=true"]
    with pytest.raises(ConfigError) as caught:
        load_experiment(None, [*wrong, "training.step.clip_gradient_norm=false"])
    assert len(caught.value.problems) == 5
    assert "training.loop.epochs: value error, true and false are not expected here, got True" in str(caught.value)
    assert load_experiment(None, ["training.step.channels_last=false"]).training.step.channels_last is False


def test_yaml_is_read_by_the_rules_of_version_1_2() -> None:
    values = parse_yaml("a: 1e-3\nb: no\nc: 12:30\nd: 0.5\ne: null\nf: true\ng: -3\nh: 1_000\n")
    assert values == {"a": 1e-3, "b": "no", "c": "12:30", "d": 0.5, "e": None, "f": True, "g": -3, "h": 1000}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: .*\n.*No such file"):
        load_experiment(tmp_path / "gone.yaml")


@pytest.mark.parametrize("override", ["epochs", "=3", ""])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        load_experiment(None, [override])


def test_a_configuration_without_its_option_is_recognised() -> None:
    with pytest.raises(ConfigError, match=r"expected key=value, .*; configurations are named by --config"):
        load_experiment(None, ["jobs/configs/demo.yaml"])


def test_the_printed_config_reads_back_to_the_same(tmp_path: Path) -> None:
    experiment = load_experiment(None, ["seed=5", "model.planes=null", "training.step.clip_gradient_norm=1e1"])
    assert load_experiment(write(tmp_path, to_yaml(experiment))) == experiment
    assert Experiment.model_validate(experiment.model_dump(mode="json")) == experiment


def test_free_keys_exist_and_do_not_count() -> None:
    experiment = load_experiment(None)
    detector = load_experiment(None, [], KeypointExperiment)
    keys = flatten(experiment.model_dump(mode="json")) | flatten(detector.model_dump(mode="json"))
    for free in FREE_KEYS:
        assert any(key == free or key.startswith(free + ".") for key in keys), free
    free = load_experiment(
        None, ["name=other", "cluster.num_workers=4", "training.loop.epochs=3", "data.loader.processes=2"]
    )
    bound = load_experiment(None, ["training.optimizer.learning_rate=1e-3"])
    assert digest(free) == digest(experiment)
    assert digest(bound) != digest(experiment)
    assert "training.optimizer.learning_rate" in digestible(experiment)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_say_how_to_run_them(path: Path) -> None:
    match path.stem.partition("_")[0]:
        case "keypoints":
            load_experiment(path, [], KeypointExperiment)
        case "panet":
            load_experiment(path, [], PANetExperiment)
        case "pmanet":
            load_experiment(path, [], PMNetExperiment)
        case _:
            load_experiment(path, [], Experiment)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("command" in line for line in header)
    assert any("time" in line for line in header)


def test_there_are_shipped_configs() -> None:
    assert len(CONFIGS) >= 5


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        (Experiment, ["data.loader.masks=true"], "PPT and its baseline learn nothing from masks"),
        (
            PMNetExperiment,
            ["loss.uncertainty_from_epoch=30", "training.loop.epochs=20"],
            "the run ends after 20 epochs, so no weight is ever learned",
        ),
        (
            PMNetExperiment,
            ["loss.identity_losses=[global,main_sum,partial_sum]"],
            r"leaves out main, so the weight of that distance .*: set evaluation\.retrieval_weights",
        ),
        (
            PMNetExperiment,
            ["loss.identity_losses=[global,main]", "evaluation.partial_tasks=true"],
            "leaves out partial, so the weight",
        ),
        (
            PMNetExperiment,
            ["model.global_head=null", "model.part_head.tasks=partial", "model.neck.pooling=gem"],
            r"neck\.pooling is gem, but partial tasks",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    kind: type[Experiment | PMNetExperiment], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(None, overrides, kind)


def test_distances_need_no_learned_weights_where_they_are_given_or_all_alike() -> None:
    without_g = "loss.identity_losses=[global,main_sum,partial_sum]"
    load_experiment(None, [without_g, "evaluation.retrieval_weights=[1,1,1]"], PMNetExperiment)
    fixed = ["model.learned_loss_weights=false", "loss.uncertainty_from_epoch=null"]
    load_experiment(None, [without_g, *fixed], PMNetExperiment)
    load_experiment(None, ["loss.identity_losses=[global,main]"], PMNetExperiment)
