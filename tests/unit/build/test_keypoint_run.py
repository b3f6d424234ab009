"""A detector's run without Ray: trained, stopped and continued to the same bits, evaluated, reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reid.build.checkpoints import load_trained_experiment, load_trained_run
from reid.build.data import annotated_rows, open_data, open_train_stream
from reid.build.evaluation import load_trained_model
from reid.build.keypoint_evaluation import evaluate_keypoints_here, evaluation_rows, load_trained_detector
from reid.build.report import write_run_report
from reid.build.results import print_results, read_result
from reid.build.run_folder import open_run
from reid.build.run_plan import describe_plan
from reid.build.training import build_training
from reid.config import KeypointExperiment, load_experiment, with_overrides
from reid.contracts import DataError
from reid.evaluation.keypoint_prediction import predict_keypoints
from reid.storage import open_location, read_bytes, sha256_of
from reid.training.checkpoint import CheckpointStore
from tests.synthetic_shards import pack_synthetic, small_config
from tests.training_runs import assert_same_bits, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_synthetic(tmp_path_factory.mktemp("keypoints"), small_config(8, 3, 3), "eight")


def experiment_on(shards: Path, runs: Path, *overrides: str) -> KeypointExperiment:
    return load_experiment(
        None,
        [
            f"runs={runs}", f"data.shards={shards}", "data.plan.batch_size=6", "data.held_out_share=0.25",
            "data.transform.height=32", "data.transform.width=32", "data.transform.degradation={}",
            "model.num_stacks=2", "model.channels=8", "model.depth=2", "training.step.precision=float32",
            "training.loop.epochs=2", "training.loop.log_every_steps=1", "training.loop.hang_after_seconds=null",
            "evaluation.num_pictures=4", *overrides,
        ],
        KeypointExperiment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> KeypointExperiment:
    experiment = experiment_on(shards, tmp_path_factory.mktemp("runs"))
    results = train(experiment)
    assert results[-1].checkpoint is not None
    assert {"loss", "loss/last_stack", "peak/visible", "peak/invisible"} <= set(results[-1].metrics)
    return experiment


def test_a_run_stopped_inside_an_epoch_and_continued_ends_in_the_same_bits(
    shards: Path, tmp_path: Path, trained: KeypointExperiment
) -> None:
    stopped = experiment_on(shards, tmp_path)
    steps = [len(train(stopped, stop_after=count)) for count in (2, 2, 1)]
    assert sum(steps) >= 3
    train(stopped)
    expected_store = CheckpointStore(open_run(trained).checkpoints)
    name = expected_store.newest()
    actual_store = CheckpointStore(open_run(stopped).checkpoints)
    assert name is not None
    assert actual_store.newest() == name
    expected, actual = expected_store.load(name), actual_store.load(name)
    assert expected.optimizer.kind == "RMSprop"
    assert any("square_avg" in key for key in expected.optimizer.tensors)
    assert_same_bits(expected, actual)


def test_evaluation_report_and_thresholds_of_a_checkpoint(trained: KeypointExperiment) -> None:
    folder = open_run(trained)
    name = CheckpointStore(folder.checkpoints).newest() or ""
    evaluation = evaluate_keypoints_here(trained, folder.checkpoints.child(name), name="tiny")
    folder.write_evaluation(name, evaluation.to_json())
    stored = folder.evaluation(name)
    assert stored is not None
    result = read_result(trained, stored)
    assert result == evaluation.result
    assert 0 < result.figures()["PCK@0.1"] < 1
    assert result.num_fitted_on == 6
    assert len(evaluation.examples) == 4
    text = print_results([result])
    assert "right-front roof corner" in text
    assert "VeRi-776" in text

    with open_data(trained) as opened:
        address = write_run_report(trained, folder, opened, "the plan")
        plan = describe_plan(trained, opened, device="cpu", resumed_from=None)
    page = Path(open_location(address).local_path).read_text()
    for words in (
        "The worst images",
        "PCK@0.1",
        "annotated images",
        "Images from best to worst",
        "hourglass, 2 stacks",
    ):
        assert words in page
    assert "annotated: 18 to train on + 6 of held-out vehicles" in plan
    assert "invisible points zero, random weights" in plan
    assert "6 = 1 worker(s) x 6 images of 32x32" in plan
    assert "6 steps = 3 x 2 epochs" in plan

    detector = load_trained_detector(folder.checkpoints.child(name), CPU)
    assert detector.thresholds.tolist() == list(result.thresholds)
    assert detector.score == "peak"
    by_mass = with_overrides(trained, ["evaluation.score=mass"])
    other = evaluate_keypoints_here(by_mass, folder.checkpoints.child(name))
    assert other.result.thresholds != result.thresholds
    folder.write_evaluation(name, other.to_json())
    detector = load_trained_detector(folder.checkpoints.child(name), CPU)
    assert (detector.score, tuple(detector.thresholds.tolist())) == ("mass", other.result.thresholds)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    sizes = np.array([[40, 80], [90, 60]])
    keypoints, scores = predict_keypoints(detector.model, images, sizes, np.full(20, -9.0))
    assert keypoints.shape == (2, 20, 3)
    assert scores.shape == (2, 20)
    assert (keypoints[..., 2] == 1).all()
    unscaled, _ = predict_keypoints(detector.model, images, np.full((2, 2), 32), np.full(20, -9.0))
    expected = (unscaled[..., :2] + 0.5) * sizes[:, None, ::-1] / 32 - 0.5
    np.testing.assert_allclose(keypoints[..., :2], expected, atol=1e-4)
    assert (keypoints[..., :2] <= sizes[:, None, ::-1] - 0.5).all()
    none, _ = predict_keypoints(detector.model, images, sizes, np.full(20, 9.0))
    assert not none.any()


def test_a_checkpoint_of_another_kind_is_refused_by_its_task(trained: KeypointExperiment) -> None:
    folder = open_run(trained)
    checkpoint = folder.checkpoints.child(CheckpointStore(folder.checkpoints).names()[-1])
    with pytest.raises(ValueError, match=r"step-\d+ is a checkpoint of task keypoints, expected .* task ppt or panet"):
        load_trained_model(checkpoint, CPU)
    run = load_trained_run(checkpoint, KeypointExperiment)
    assert run.experiment == trained == load_trained_experiment(checkpoint)
    assert run.checkpoint_hash == sha256_of(read_bytes(checkpoint.child("manifest.json")))
    with open_data(trained) as opened:
        assert run.data_hash == opened.manifest.hash


def test_held_out_identities_are_not_trained_on_and_follow_from_the_seed(shards: Path, tmp_path: Path) -> None:
    with open_data(experiment_on(shards, tmp_path)) as opened:
        index = opened.index
        chosen = set()
        for seed in range(4):
            experiment = experiment_on(shards, tmp_path, f"seed={seed}")
            train_rows, held_out = annotated_rows(experiment, opened)
            assert not set(index.label[train_rows]) & set(index.label[held_out])
            assert len(set(index.label[held_out])) == 2
            assert np.array_equal(np.union1d(train_rows, held_out), index.rows("train"))
            chosen.add(tuple(held_out.tolist()))
            stream = open_train_stream(experiment, opened, 0, 1, CPU)
            shown = torch.cat([batch.samples for batch in stream.batches(0)])
            stream.close()
            assert set(shown.tolist()) == set(train_rows.tolist())
        assert len(chosen) > 1
        everything = experiment_on(shards, tmp_path, "data.held_out_share=0")
        assert len(annotated_rows(everything, opened)[1]) == 0
        rows = evaluation_rows(everything, opened)
        assert set(index.split[rows.measured]) == {"gallery"}
        assert rows.protocol == "annotated test images"


def test_what_went_wrong_is_published_by_kind_once_there_is_any(shards: Path, tmp_path: Path) -> None:
    training = build_training(experiment_on(shards, tmp_path), CPU)
    assert training.mishaps() == {}
    training.stream.retries.update(download=3)
    training.stream.skipped.update(image_truncated=2)
    assert training.mishaps() == {"samples_skipped/image_truncated": 2, "storage_retries/download": 3}
    training.stream.close()
    training.shards.close()


def test_a_data_set_without_keypoints_is_a_data_error(shards: Path, tmp_path: Path) -> None:
    experiment = experiment_on(shards, tmp_path)
    with open_data(experiment) as opened:
        index = opened.index
        before = index.has_keypoints.copy()
        index.has_keypoints[:] = False
        try:
            with pytest.raises(DataError, match="no training image has keypoints"):
                annotated_rows(experiment, opened)
        finally:
            index.has_keypoints[:] = before
