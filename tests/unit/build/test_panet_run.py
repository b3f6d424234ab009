"""PANet without Ray: trained on masks, stopped and continued to the same bits; parts added to shards; pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import add_masks, compare_masks
from reid.build.added_parts import (
    AddedParts,
    PartAdditionConfig,
    UniformStripes,
    centres_inside,
    hard_mask,
    intersection_over_union,
    locate_parts,
    without_small_pieces,
)
from reid.build.checkpoints import load_trained_experiment
from reid.build.data import open_data, open_eval_stream
from reid.build.evaluation import TrainedModel, evaluate_here, load_trained_model
from reid.build.network_additions import NetworkRun
from reid.build.report import write_run_report
from reid.build.run_folder import open_run
from reid.build.run_plan import describe_plan
from reid.build.training import build_training
from reid.config import Experiment, PANetExperiment, load_experiment
from reid.data.decode import decode_mask
from reid.data.enrichment import enrich_shards
from reid.data.readers import DatasetConfig, read_dataset
from reid.data.shard_set import open_shards
from reid.data.shards import PackConfig, pack_shards
from reid.data.synthetic import SyntheticConfig, write_synthetic_veri
from reid.data.verify import verify_shards
from reid.evaluation.part_boxes import PartConfig, part_boxes
from reid.models.panet import PANet
from reid.parts import uniform_stripes
from reid.storage import open_location
from reid.training.checkpoint import CheckpointStore
from tests.training_runs import assert_same_bits, train
from tests.unit.data.raw_images import SMALL, draw_records

CPU = torch.device("cpu")
RUN = NetworkRun(device="cpu", precision="float32", batch_size=5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panet")
    config = SyntheticConfig(
        num_train_identities=6, num_test_identities=3, num_cameras=3, cameras_per_identity=3, images_per_camera=1
    )
    write_synthetic_veri(folder / "raw", config)
    records = read_dataset(DatasetConfig(format="veri776", root=str(folder / "raw")))
    pack_shards(records, folder / "set", PackConfig(name="six"))
    return folder / "set"


def experiment_on(shards: Path, runs: Path, *overrides: str) -> PANetExperiment:
    return load_experiment(
        None,
        [
            f"runs={runs}", f"data.shards={shards}", "data.plan.identities_per_batch=3",
            "data.plan.images_per_identity=2", "data.transform.height=48", "data.transform.width=48",
            "model.backbone.name=resnet18", "model.backbone.weights=null", "model.decoder_channels=[8,8,8]",
            "training.step.precision=float32", "training.loop.epochs=2", "training.loop.log_every_steps=1",
            "training.loop.checkpoint_every_epochs=1", "evaluation.every_epochs=1",
            "training.loop.hang_after_seconds=null", *overrides,
        ],
        PANetExperiment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def experiment(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> PANetExperiment:
    experiment = experiment_on(shards, tmp_path_factory.mktemp("runs"))
    results = train(experiment)
    assert {"loss/identity", "loss/triplet", "loss/segmentation", "mask_iou"} <= set(results[-1].metrics)
    assert 0 < results[-1].metrics["mask_iou"] < 1
    return experiment


@pytest.fixture(scope="module")
def checkpoint(experiment: PANetExperiment) -> str:
    folder = open_run(experiment).checkpoints
    return folder.child(CheckpointStore(folder).newest() or "").uri


@pytest.fixture(scope="module")
def trained(checkpoint: str) -> TrainedModel:
    return load_trained_model(open_location(checkpoint), CPU)


def test_the_recipe_is_panets_and_masks_are_not_a_choice(shards: Path, tmp_path: Path) -> None:
    recipe = PANetExperiment()
    assert (recipe.training.optimizer.learning_rate, recipe.training.loop.epochs) == (1e-4, 100)
    assert (recipe.data.plan.identities_per_batch, recipe.data.plan.images_per_identity) == (16, 4)
    assert (recipe.data.transform.height, recipe.data.transform.width) == (256, 256)
    assert recipe.model.backbone.name == "resnet50"
    assert recipe.training.schedule.milestones == ()
    with pytest.raises(ValueError, match="PANet learns from masks"):
        experiment_on(shards, tmp_path, "data.loader.masks=false")


def test_a_set_without_masks_is_refused(tmp_path: Path, shards: Path) -> None:
    records = read_dataset(DatasetConfig(format="veri776", root=str(shards.parent / "raw")))
    pack_shards(records, tmp_path / "bare", PackConfig(name="bare", masks=False))
    with pytest.raises(ValueError, match="masks are asked for, but 18 of 18 images have none"):
        build_training(experiment_on(tmp_path / "bare", tmp_path), CPU)


def test_a_run_stopped_inside_an_epoch_and_continued_ends_in_the_same_bits(
    shards: Path, tmp_path: Path, experiment: PANetExperiment
) -> None:
    stopped = experiment_on(shards, tmp_path)
    train(stopped, stop_after=1)
    train(stopped, stop_after=2)
    train(stopped)
    expected_store, actual_store = (CheckpointStore(open_run(run).checkpoints) for run in (experiment, stopped))
    name = expected_store.newest()
    assert name is not None
    assert actual_store.newest() == name
    expected, actual = expected_store.load(name), actual_store.load(name)
    assert_same_bits(expected, actual)


def test_evaluation_is_retrieval_and_the_report_shows_the_parts(experiment: PANetExperiment, checkpoint: str) -> None:
    folder, location = open_run(experiment), open_location(checkpoint)
    assert isinstance(load_trained_experiment(location), PANetExperiment)
    evaluation = evaluate_here(experiment, location, name="tiny")
    assert 0 < evaluation.result.figures()["mAP"] <= 1
    folder.write_evaluation(location.name, evaluation.to_json())
    with open_data(experiment) as opened:
        page = Path(open_location(write_run_report(experiment, folder, opened)).local_path).read_text()
        plan = describe_plan(experiment, opened, device="cpu", resumed_from=None)
    for words in ("resnet18, 48x48, PANet", "<h2>Parts", "Rank lists", "segmentation"):
        assert words in page
    assert "resnet18, random weights, PANet: identities and masks" in plan


def test_the_set_holds_the_masks_and_boxes_of_the_network(
    tmp_path: Path, shards: Path, experiment: PANetExperiment, trained: TrainedModel
) -> None:
    config = PartAdditionConfig(parts=PartConfig(num_parts=2, width=0.4), min_foreground=0.0)
    manifest = enrich_shards(shards, tmp_path / "parts", AddedParts(trained, RUN, config))
    assert verify_shards(tmp_path / "parts", decode=True).passed
    model = trained.model
    assert isinstance(model, PANet)
    with open_data(experiment) as before, open_shards(tmp_path / "parts") as after:
        index = after.index
        stream = open_eval_stream(experiment, before, np.arange(len(index)), CPU)
        images = torch.cat([batch.images for batch in stream])
        stream.close()
        shares, overlaps = [], []
        for row in range(len(index)):
            with torch.inference_mode():
                logits, attention = model.locate(images[row : row + 1])
            small = (logits.sigmoid() >= 0.5)[0, 0].numpy()
            cells = small.reshape(3, 16, 3, 16).mean(axis=(1, 3)) >= 0.5
            expected = part_boxes(attention[0].numpy(), cells, config.parts)
            assert index.boxes is not None
            np.testing.assert_allclose(index.boxes[row], expected.boxes, atol=1e-6)
            stored, old = after.read_mask(row), before.read_mask(row)
            assert stored is not None
            assert old is not None
            mask = decode_mask(stored)
            assert mask.shape == (index.height[row], index.width[row])
            clear = hard_mask(logits.sigmoid()[0, 0].numpy(), *mask.shape)
            assert (mask == clear).mean() > 0.999
            shares.append(mask.mean())
            overlaps.append(intersection_over_union(mask, decode_mask(old)))
    means = manifest.additions[-1].means
    assert means["foreground_share"] == pytest.approx(np.mean(shares), abs=1e-5)
    assert means["iou_with_old_mask"] == pytest.approx(np.mean(overlaps), abs=1e-5)
    assert manifest.additions[-1].members == {"mask.png": len(index), "boxes.json": len(index)}
    assert trained.checkpoint_hash in manifest.additions[-1].version


def test_an_empty_mask_is_an_ellipse_and_flagged(tmp_path: Path, shards: Path, trained: TrainedModel) -> None:
    config = PartAdditionConfig(min_foreground=1.0)
    manifest = enrich_shards(shards, tmp_path / "parts", AddedParts(trained, RUN, config))
    assert manifest.additions[-1].problems["foreground_small"] > 0
    assert 0.6 < manifest.additions[-1].means["foreground_share"] < 0.7


def test_stripes_leave_the_masks_as_they_are(tmp_path: Path, shards: Path) -> None:
    enrich_shards(shards, tmp_path / "stripes", UniformStripes(4))
    with open_shards(shards) as before, open_shards(tmp_path / "stripes") as after:
        assert after.index.boxes is not None
        np.testing.assert_array_equal(after.index.boxes, np.broadcast_to(uniform_stripes(4), after.index.boxes.shape))
        assert all(before.read_mask(row) == after.read_mask(row) for row in range(len(before.index)))


def test_masks_are_resized_and_cut_at_a_half() -> None:
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    assert hard_mask(ramp, 64, 64).sum() == 32 * 64
    assert hard_mask(ramp, 16, 16)[:, 8:].all()
    assert not hard_mask(ramp, 16, 16)[:, :8].any()
    assert hard_mask(ramp, 200, 100).shape == (200, 100)
    assert abs(hard_mask(ramp, 200, 100).mean() - 0.5) < 0.011


def test_masks_of_both_directions_are_averaged_and_boxes_stay(
    tmp_path: Path, shards: Path, experiment: PANetExperiment, trained: TrainedModel
) -> None:
    model = trained.model
    assert isinstance(model, PANet)
    with open_data(experiment) as opened:
        stream = open_eval_stream(experiment, opened, np.arange(4), CPU)
        images = torch.cat([batch.images for batch in stream])
        stream.close()
    plain, _, parts = locate_parts(model, images, PartConfig())
    mirrored, _, _ = locate_parts(model, images.flip(-1), PartConfig())
    both, _, parts_of_both = locate_parts(model, images, PartConfig(), flip=True)
    assert np.abs(plain - mirrored[:, :, ::-1]).max() > 1e-3
    np.testing.assert_allclose(both, (plain + mirrored[:, :, ::-1]) / 2, atol=1e-6)
    for one, other in zip(parts, parts_of_both, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
    manifests = {
        flip: enrich_shards(
            shards, tmp_path / f"flip-{flip}", AddedParts(trained, RUN, PartAdditionConfig(flip=flip, min_piece=0.2))
        )
        for flip in (False, True)
    }
    assert manifests[True].hash != manifests[False].hash


def test_small_pieces_of_a_mask_are_dropped_by_their_share_of_the_largest() -> None:
    mask = np.zeros((8, 12), dtype=np.uint8)
    mask[1:5, 1:6] = 1  # 20
    mask[5:7, 6:8] = 1  # 4, touching the corner: the same piece
    mask[1:3, 9:12] = 1  # 6
    mask[6, 11] = 1  # 1
    assert without_small_pieces(mask, 0.0).sum() == 31
    assert without_small_pieces(mask, 0.1).sum() == 30
    kept = without_small_pieces(mask, 0.3)
    assert kept.sum() == 24
    assert kept[5:7, 6:8].all()
    assert kept.dtype == np.uint8
    for empty_or_whole in (np.zeros((3, 3), np.uint8), np.ones((3, 3), np.uint8)):
        np.testing.assert_array_equal(without_small_pieces(empty_or_whole, 0.5), empty_or_whole)


def test_overlap_and_centres_by_hand() -> None:
    first, second = np.zeros((2, 4, 6), dtype=np.uint8)
    assert intersection_over_union(first, second) == 1.0
    first[:2], second[1:3] = 1, 1
    assert intersection_over_union(first, second) == pytest.approx(1 / 3)
    boxes = np.array([[0, 0, 1, 0.5], [0, 0.5, 1, 1], [0.9, 0.9, 1.1, 1.1]], dtype=np.float32)
    assert centres_inside(boxes, first) == pytest.approx(1 / 3)
    assert centres_inside(boxes, 1 - first) == pytest.approx(2 / 3)


def test_a_checkpoint_of_another_kind_is_refused(trained: TrainedModel) -> None:
    from reid.models.ppt import PPT, PPTConfig

    backbone = trained.experiment.model.backbone
    other = TrainedModel(
        model=PPT(PPTConfig(backbone=backbone), 3), experiment=Experiment(), checkpoint_hash="", data_hash=""
    )
    with pytest.raises(ValueError, match=r"expected a checkpoint of panet .* got one of ppt"):
        AddedParts(other, RUN, PartAdditionConfig())


def test_the_jobs_add_parts_and_compare_them_with_the_truth(
    tmp_path: Path,
    shards: Path,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(job: object, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["job.py", *arguments])
        code: int = job.main()  # type: ignore[attr-defined]
        return code

    target, picture = str(tmp_path / "parts"), tmp_path / "parts.png"
    settings = ["parts.num_parts=4", "network.precision=float32"]
    options = ["--no-ray", "--pictures", str(picture), "--num-pictures", "3"]
    assert run(add_masks, "--panet", checkpoint, str(shards), target, *settings, *options) == 0
    printed = capsys.readouterr().out
    count = len(open_shards(shards).index)
    assert f"{count} mask.png, {count} boxes.json" in printed
    assert "centres on vehicle" in printed
    assert picture.stat().st_size > 10_000
    index = open_shards(target).index
    assert index.boxes is not None
    assert index.boxes.shape == (count, 4, 4)
    stripes = str(tmp_path / "stripes")
    assert run(add_masks, "--stripes", "2", str(shards), stripes, "--no-ray") == 0
    assert run(add_masks, "--stripes", "0", str(shards), stripes, "--no-ray") == 2
    assert run(add_masks, "--stripes", "2", str(shards), stripes, "--no-ray", "seed=3") == 2
    assert run(add_masks, "--panet", str(tmp_path), str(shards), str(tmp_path / "x"), "--no-ray") == 2
    capsys.readouterr()
    assert run(compare_masks, str(shards), target, stripes, "--split", "gallery") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[:3] == ["stripes", "9", "100.0"]
    assert lines[-2].split()[:2] == ["parts", "9"]
    assert run(compare_masks, str(tmp_path / "nothing"), target) == 3
    other = draw_records(tmp_path / "raw", masks=True)
    pack_shards(other, tmp_path / "other", SMALL)
    assert run(compare_masks, str(shards), str(tmp_path / "other")) == 3
    assert "are in one of the two sets only" in capsys.readouterr().err
    assert run(compare_masks, str(shards), target, "--split", "test") == 3
