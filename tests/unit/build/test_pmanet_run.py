"""PMANet without Ray: trained with parts, stopped and continued to the same bits, evaluated with and without parts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.build.added_parts import UniformStripes
from reid.build.checkpoints import load_trained_experiment
from reid.build.data import open_data, open_eval_stream
from reid.build.evaluation import evaluate_here, load_trained_model
from reid.build.report import write_run_report
from reid.build.run_folder import open_run
from reid.build.run_plan import describe_plan
from reid.build.training import build_training
from reid.config import Experiment, PMNetExperiment, load_experiment, with_overrides
from reid.contracts import DataError
from reid.data.enrichment import enrich_shards
from reid.data.occluded_queries import OccludedQueries
from reid.data.occlusion import OcclusionConfig
from reid.data.readers import DatasetConfig, read_dataset
from reid.data.shard_set import open_shards
from reid.data.shards import PackConfig, pack_shards
from reid.evaluation.extract import extract_features
from reid.models.pmnet import PMNet
from reid.parts import uniform_stripes
from reid.storage import open_location
from reid.training.checkpoint import CheckpointStore
from reid.training.optim import OptimizerConfig, build_optimizer, parameter_groups
from tests.synthetic_shards import pack_synthetic, small_config
from tests.training_runs import assert_same_bits, train

CPU = torch.device("cpu")
COMBINATION = "model.planes={}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six vehicles to train on, with masks and two boxes an image."""
    folder = tmp_path_factory.mktemp("pmanet")
    packed = pack_synthetic(folder, small_config(num_train_identities=6, num_test_identities=3, num_cameras=3), "six")
    records = read_dataset(DatasetConfig(format="veri776", root=str(folder / "raw")))
    pack_shards(records, folder / "bare", PackConfig(name="bare", masks=False))
    enrich_shards(packed, folder / "parts", UniformStripes(2))
    return folder / "parts"


def experiment_on(shards: Path, runs: Path, *overrides: str) -> PMNetExperiment:
    return load_experiment(
        None,
        [
            f"runs={runs}", f"data.shards={shards}", "data.plan.identities_per_batch=3",
            "data.plan.images_per_identity=2", "data.transform.height=48", "data.transform.width=48",
            "model.backbone.name=resnet18", "model.backbone.weights=null", "model.part_head.num_parts=2",
            "model.part_head.branch_channels=32", "model.global_head.channels=32",
            "training.step.precision=float32", "training.loop.epochs=2", "training.loop.log_every_steps=1",
            "training.loop.checkpoint_every_epochs=1", "evaluation.every_epochs=1",
            "training.loop.hang_after_seconds=null", "training.optimizer.loss_weight_rate=100", *overrides,
        ],
        PMNetExperiment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def experiment(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> PMNetExperiment:
    experiment = experiment_on(shards, tmp_path_factory.mktemp("runs"), COMBINATION)
    results = train(experiment)
    losses = {"loss/identity/global", "loss/triplet/partial", "loss/part_transfer", "loss/planes", "weight/main_sum"}
    assert losses <= set(results[-1].metrics)
    return experiment


def newest(experiment: PMNetExperiment) -> str:
    folder = open_run(experiment).checkpoints
    return folder.child(CheckpointStore(folder).newest() or "").uri


def test_the_recipe_is_pmanets() -> None:
    recipe = PMNetExperiment()
    assert (recipe.data.plan.identities_per_batch, recipe.data.plan.images_per_identity) == (4, 8)
    assert (recipe.training.optimizer.learning_rate, recipe.training.loop.epochs) == (1.5e-4, 120)
    assert recipe.training.schedule.milestones == (40, 70, 100)
    assert recipe.training.schedule.warmup_epochs == 10
    transform = recipe.data.transform
    assert (transform.height, transform.width, transform.flip_probability) == (256, 256, 0.5)
    assert (transform.erasing_probability, transform.occlusion_probability) == (0.5, 0.3)
    assert recipe.model.backbone.name == "resnet50"
    assert (recipe.loss.triplet_margin, recipe.loss.label_smoothing) == (0.7, 0.0)
    assert not recipe.evaluation.partial_tasks


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.learned_loss_weights=false", "model.learned_loss_weights is false"),
        ("loss.uncertainty_from_epoch=null", "loss.uncertainty_from_epoch is null"),
        ("model.part_head=null evaluation.partial_tasks=true", "evaluation.partial_tasks is true, but the model has"),
        ("model.part_head={tasks: partial} model.global_head=null", "nothing but partial tasks"),
        ("model.planes={} model.global_head=null", "global_head is null"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    shards: Path, tmp_path: Path, override: str, message: str
) -> None:
    changes = override.replace(" model", "\nmodel").replace(" evaluation", "\nevaluation").split("\n")
    with pytest.raises(ValueError, match=message):
        load_experiment(None, changes, PMNetExperiment)


def test_other_methods_have_no_partial_tasks() -> None:
    with pytest.raises(ValueError, match=r"evaluation.partial_tasks is for PMANet"):
        load_experiment(None, ["evaluation.partial_tasks=true"], Experiment)


def test_another_number_of_parts_than_the_shards_hold_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 parts are asked for, but the shards hold 2"):
        build_training(experiment_on(shards, tmp_path, "model.part_head.num_parts=3"), CPU)


@pytest.mark.parametrize("num_parts", [1, 6])
def test_a_set_without_masks_and_boxes_is_trained_on_stripes_and_the_plan_counts_them(
    shards: Path, tmp_path: Path, num_parts: int
) -> None:
    settings = [f"model.part_head.num_parts={num_parts}", "training.loop.epochs=1"]
    bare = experiment_on(shards.parent / "bare", tmp_path, *settings)
    assert np.isfinite(train(bare)[-1].metrics["loss"])
    with open_data(bare) as opened:
        plan = describe_plan(bare, opened, device="cpu", resumed_from=None)
    assert f"{num_parts} boxes each for 0 of 18 images; 18 without get uniform stripes" in plan
    assert "18 have no mask" in plan


def test_stripes_can_be_asked_for_whatever_the_shards_hold(shards: Path, tmp_path: Path) -> None:
    striped = experiment_on(shards, tmp_path, "model.part_head.num_parts=4", "model.part_head.boxes=stripes")
    training = build_training(striped, CPU)
    batch = next(iter(training.stream.batches(0)))
    training.stream.close()
    assert batch.boxes is not None
    assert batch.boxes.shape == (6, 4, 4)
    with open_data(striped) as opened:
        rows = opened.index.rows("query")
        stream = open_eval_stream(with_overrides(striped, ["evaluation.partial_tasks=true"]), opened, rows, CPU)
        boxes = next(iter(stream)).boxes
        stream.close()
        assert boxes is not None
        np.testing.assert_array_equal(boxes.numpy(), np.tile(uniform_stripes(4), (len(rows), 1, 1)))
        plan = describe_plan(striped, opened, device="cpu", resumed_from=None)
    assert "4 uniform stripes for every image" in plan
    with pytest.raises(ValueError, match="with tasks 'main' no part is looked at"):
        experiment_on(shards, tmp_path, "model.part_head.boxes=stripes", "model.part_head.tasks=main")


def test_a_run_stopped_inside_an_epoch_and_continued_ends_in_the_same_bits(
    shards: Path, tmp_path: Path, experiment: PMNetExperiment
) -> None:
    stopped = experiment_on(shards, tmp_path, COMBINATION)
    train(stopped, stop_after=1)
    train(stopped, stop_after=2)
    train(stopped)
    expected_store, actual_store = (CheckpointStore(open_run(run).checkpoints) for run in (experiment, stopped))
    name = expected_store.newest()
    assert name is not None
    assert actual_store.newest() == name
    expected, actual = expected_store.load(name), actual_store.load(name)
    moved = expected.model["log_variances"]
    assert (moved != 0).all(), "the log variances are part of the checkpoint, and have moved"
    assert_same_bits(expected, actual)


def test_log_variances_form_the_last_group_without_decay_at_their_own_rate(experiment: PMNetExperiment) -> None:
    model = load_trained_model(open_location(newest(experiment)), CPU).model
    assert isinstance(model, PMNet)
    config = OptimizerConfig(learning_rate=0.1, loss_weight_rate=3.0, decay_norm_and_bias=False)
    optimizer = build_optimizer(parameter_groups(model, config), config)
    *others, own = optimizer.param_groups
    assert own["params"] == [model.log_variances]
    assert (own["weight_decay"], own["lr"], own["initial_lr"]) == (0.0, pytest.approx(0.3), pytest.approx(0.3))
    assert sum(len(group["params"]) for group in others) + 1 == sum(1 for p in model.parameters() if p.requires_grad)
    assert {group["lr"] for group in others} == {0.1}
    with pytest.raises(ValueError, match="loss_weight_rate is 3, but this run learns no loss weights"):
        parameter_groups(torch.nn.Linear(2, 2), config)


def test_learned_weights_wait_for_their_epoch(shards: Path, tmp_path: Path) -> None:
    run = experiment_on(shards, tmp_path, "loss.uncertainty_from_epoch=1", "loss.fixed_weights=[3,1,1,1,1]")
    train(run)
    names = CheckpointStore(open_run(run).checkpoints).names()
    first, last = (CheckpointStore(open_run(run).checkpoints).load(name).model["log_variances"] for name in names)
    assert (first == 0).all()
    assert (last != 0).all()


def test_evaluation_without_parts_needs_none_and_with_parts_uses_them(
    shards: Path, experiment: PMNetExperiment
) -> None:
    location = open_location(newest(experiment))
    assert isinstance(load_trained_experiment(location), PMNetExperiment)
    plain = evaluate_here(experiment, location)
    full_run = with_overrides(experiment, ["evaluation.partial_tasks=true"])
    full = evaluate_here(full_run, location)
    assert plain.result.notes == ()
    assert full.result.notes == ("retrieval with partial tasks (h joins f_g and g)",)
    trained = load_trained_model(location, CPU)
    model = trained.model
    assert isinstance(model, PMNet)
    with open_data(experiment) as opened:
        rows = opened.index.rows("query")
        without, parts = (open_eval_stream(run, opened, rows, CPU) for run in (experiment, full_run))
        short, _ = extract_features(model.embed, without, CPU)
        long, _ = extract_features(model.embed, parts, CPU)
        mirrored, _ = extract_features(model.embed, parts, CPU, flip=True)
        batch = next(iter(parts))
        without.close()
        parts.close()
    assert short.shape == (len(rows), 32 + 64)
    assert long.shape == mirrored.shape == (len(rows), 32 + 64 + 64)
    assert batch.masks is not None
    assert batch.boxes is not None
    # By hand: mirrored images, masks and boxes.
    boxes = batch.boxes.clone()
    boxes[..., 0], boxes[..., 2] = 1 - batch.boxes[..., 2], 1 - batch.boxes[..., 0]
    with torch.inference_mode():
        both = model.embed(batch.images, batch.masks, batch.boxes) + model.embed(
            batch.images.flip(3), batch.masks.flip(3), boxes
        )
    np.testing.assert_allclose(mirrored, torch.nn.functional.normalize(both).numpy(), atol=1e-6)


def test_test_images_without_boxes_are_noted(shards: Path, experiment: PMNetExperiment) -> None:
    elsewhere = with_overrides(experiment, ["evaluation.partial_tasks=true", f"data.shards={shards.parent / 'bare'}"])
    notes = evaluate_here(elsewhere, open_location(newest(experiment))).result.notes
    assert any(re.fullmatch(r"(\d+) of \1 images have no part boxes: uniform stripes", note) for note in notes)


def test_the_report_names_the_method_and_shows_its_losses(experiment: PMNetExperiment) -> None:
    folder, location = open_run(experiment), open_location(newest(experiment))
    folder.write_evaluation(location.name, evaluate_here(experiment, location, name="tiny").to_json())
    with open_data(experiment) as opened:
        page = Path(open_location(write_run_report(experiment, folder, opened)).local_path).read_text()
        plan = describe_plan(experiment, opened, device="cpu", resumed_from=None)
    for words in (
        "resnet18, 48x48, PMANet with PPT",
        "Weights of the identity losses",
        "Rank lists",
        "part_transfer",
        "<h2>Branches",
    ):
        assert words in page
    assert "PMANet: global head, 2 branches (main and partial, attention multi_scale), PPT planes" in plan
    assert "2 boxes each for 18 of 18 images" in plan


def test_parts_of_the_clean_images_are_refused_on_an_occluded_set(
    shards: Path, tmp_path: Path, experiment: PMNetExperiment
) -> None:
    with open_shards(shards) as clean:
        enrich_shards(shards, tmp_path / "occluded", OccludedQueries(clean, OcclusionConfig(severity=0.2, seed=0)))
    location = open_location(newest(experiment))
    occluded = with_overrides(experiment, [f"data.shards={tmp_path / 'occluded'}"])
    assert "20 % occluded" in evaluate_here(occluded, location).result.protocol
    with pytest.raises(DataError, match=r"masks( and part boxes)? of the clean images"):
        evaluate_here(with_overrides(occluded, ["evaluation.partial_tasks=true"]), location)


def test_weights_of_the_three_distances_can_be_chosen_at_test_time(experiment: PMNetExperiment) -> None:
    location = open_location(newest(experiment))
    only_global = with_overrides(experiment, ["evaluation.retrieval_weights=[1, 1e-12, 1e-12]"])
    one, both = (evaluate_here(run, location).examples[0]["distances"] for run in (only_global, experiment))
    assert one != both
    with pytest.raises(ValueError, match=r"evaluation\.retrieval_weights is for PMANet"):
        load_experiment(None, ["evaluation.retrieval_weights=[1,1,1]"], Experiment)
