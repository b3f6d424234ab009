"""Keypoints by a detector in shards: the same as evaluation finds, in any batches; what is absurd is refused."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import add_keypoints
from reid.build.added_keypoints import (
    AbsurdRates,
    AddedKeypoints,
    KeypointAdditionConfig,
    rate_warnings,
    rates_table,
)
from reid.build.data import open_data
from reid.build.keypoint_evaluation import TrainedDetector, load_trained_detector, predict_rows
from reid.build.network_additions import NetworkRun, NetworkRunConfig, resolve_run
from reid.build.run_folder import open_run
from reid.config import KeypointExperiment, load_experiment
from reid.contracts import DataError
from reid.data.additions import Sample
from reid.data.enrichment import enrich_shards
from reid.data.plane_table import visible_planes
from reid.data.shard_set import open_shards
from reid.data.shards import pack_shards
from reid.data.staging import ShardResult
from reid.data.verify import verify_shards
from reid.evaluation.heat_map_peaks import with_visibility
from reid.keypoints import PLANE_NAMES
from reid.storage import open_location
from reid.training.checkpoint import CheckpointStore
from tests.training_runs import train
from tests.unit.data.raw_images import SMALL, draw_records, encoded_noise

RUN = NetworkRun(device="cpu", precision="float32", batch_size=4)
LOW: dict[str, object] = {"max_without_plane": 1.0, "fitted_thresholds": False}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("added")
    records = draw_records(folder / "raw")
    pack_shards(records, folder / "set", SMALL)
    return folder / "set"


@pytest.fixture(scope="module")
def experiment(source: Path, tmp_path_factory: pytest.TempPathFactory) -> KeypointExperiment:
    runs = tmp_path_factory.mktemp("runs")
    experiment = load_experiment(
        None,
        [
            f"runs={runs}", f"data.shards={source}", "data.plan.batch_size=2", "data.held_out_share=0",
            "data.transform.height=32", "data.transform.width=48", "model.num_stacks=2", "model.channels=8",
            "model.depth=2", "training.step.precision=float32", "training.loop.epochs=1",
            "training.loop.hang_after_seconds=null", "evaluation.refinement=taylor", "evaluation.threshold=0.01",
        ],
        KeypointExperiment,
    )  # fmt: skip
    train(experiment)
    return experiment


@pytest.fixture(scope="module")
def checkpoint(experiment: KeypointExperiment) -> str:
    folder = open_run(experiment).checkpoints
    return folder.child(CheckpointStore(folder).newest() or "").uri


@pytest.fixture(scope="module")
def trained(experiment: KeypointExperiment, checkpoint: str) -> TrainedDetector:
    detector = load_trained_detector(open_location(checkpoint), torch.device("cpu"))
    # Thresholds in the middle of each keypoint's peaks: about half of the points are visible.
    with open_data(experiment) as shards:
        rows = np.arange(len(shards.index))
        peaks = predict_rows(experiment, detector, shards, rows, torch.device("cpu")).peaks
    ordered = np.sort(peaks[..., 2], axis=0)
    detector.thresholds[:] = (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2
    return detector


def enriched(source: Path, target: Path, trained: TrainedDetector, run: NetworkRun = RUN, **settings: object) -> Path:
    config = KeypointAdditionConfig.model_validate(LOW | settings)
    enrich_shards(source, target, AddedKeypoints(trained, run, config))
    return target


def test_the_set_holds_what_evaluation_finds(
    tmp_path: Path, source: Path, experiment: KeypointExperiment, trained: TrainedDetector
) -> None:
    target = enriched(source, tmp_path / "set", trained)
    assert verify_shards(target, decode=True).passed
    with open_data(experiment) as before, open_shards(target) as after:
        rows = np.arange(len(before.index))
        predicted = predict_rows(experiment, trained, before, rows, torch.device("cpu"))
        expected = with_visibility(predicted.peaks, trained.thresholds)
        visible = expected[..., 2] > 0
        assert 0.2 < visible.mean() < 0.8
        limits = np.stack((before.index.width, before.index.height), axis=1)[:, None] - 1.0
        expected[..., :2] = np.where(visible[..., None], np.clip(expected[..., :2], 0, limits), 0)
        np.testing.assert_allclose(after.index.keypoints, expected, atol=1e-3)
        scores = after.index.keypoint_scores
        assert scores is not None
        np.testing.assert_allclose(scores, predicted.peaks[..., 2], atol=1e-5)
        addition = after.manifest.additions[-1]
        assert addition.version == f"hourglass {trained.checkpoint_hash}"
        assert addition.members == {"keypoints": len(rows)}
        shown = visible_planes(after.index.keypoints)
        for place, plane in enumerate(PLANE_NAMES):
            assert addition.means[f"plane/{plane}"] == pytest.approx(shown[:, place].mean(), abs=1e-6)
        assert addition.means["no_plane"] == pytest.approx((~shown.any(axis=1)).mean(), abs=1e-6)
        assert addition.means["visible_keypoints"] == pytest.approx(visible.sum(axis=1).mean(), abs=1e-6)
        annotated = before.index.has_keypoints
        agree = shown[annotated] == visible_planes(before.index.keypoints[annotated])
        assert addition.means["annotated_planes_agree"] == pytest.approx(agree.mean(), abs=1e-6)


def test_batches_do_not_matter_and_the_network_travels(tmp_path: Path, source: Path, trained: TrainedDetector) -> None:
    one = enriched(source, tmp_path / "one", trained, NetworkRun(device="cpu", precision="float32", batch_size=1))
    travelled = pickle.loads(pickle.dumps(trained))
    many = enriched(source, tmp_path / "many", travelled, NetworkRun(device="cpu", precision="float32", batch_size=7))
    a, b = open_shards(one).index, open_shards(many).index
    np.testing.assert_allclose(a.keypoints, b.keypoints, atol=1e-3)
    assert a.key.tolist() == b.key.tolist()


def test_annotated_keypoints_are_kept_when_asked(tmp_path: Path, source: Path, trained: TrainedDetector) -> None:
    kept = open_shards(enriched(source, tmp_path / "kept", trained, annotated="keep"))
    replaced = open_shards(enriched(source, tmp_path / "replaced", trained))
    before = open_shards(source).index
    had = before.has_keypoints
    assert 0 < had.sum() < len(had)
    np.testing.assert_array_equal(kept.index.keypoints[had], before.keypoints[had])
    np.testing.assert_array_equal(kept.index.keypoints[~had], replaced.index.keypoints[~had])
    assert not np.array_equal(replaced.index.keypoints[had], before.keypoints[had])
    assert kept.manifest.additions[-1].members == {"keypoints": int((~had).sum())}


def test_an_image_that_cannot_be_read_gets_its_reason(trained: TrainedDetector) -> None:
    def sample(key: str, data: bytes) -> Sample:
        return Sample(key=key, split="train", image=memoryview(data), width=40, height=30, mask=None, keypoints=None)

    good = encoded_noise(3)
    samples = [sample("a", good), sample("b", good[:-40]), sample("c", b"no image"), sample("d", good)]
    config = KeypointAdditionConfig(fitted_thresholds=False)
    answers = list(AddedKeypoints(trained, RUN, config)(iter(samples)))
    assert [answer.problem for answer in answers[1:3]] == ["image_truncated", "image_unreadable"]
    assert answers[1].keypoints is None
    assert answers[0].keypoints is not None
    assert answers[3].keypoints is not None
    np.testing.assert_array_equal(answers[0].keypoints, answers[3].keypoints)
    alone = list(AddedKeypoints(trained, RUN, config)(iter(samples[1:2])))
    assert [answer.problem for answer in alone] == ["image_truncated"]


def results_of(*shares: float) -> Iterator[ShardResult]:
    info = None
    for share in shares:
        yield ShardResult(info=info, index=None, counts={"no_plane": 100}, sums={"no_plane": 100 * share})  # type: ignore[arg-type]


def test_a_detector_that_does_not_know_the_images_is_refused_early_and_before_the_end() -> None:
    config = KeypointAdditionConfig(max_without_plane=0.5, min_images_to_judge=300)
    rates = AbsurdRates(config)
    first, second, third, _ = results_of(0.2, 0.8, 1.0, 0.0)
    rates(100, 400, first)
    rates(200, 400, second)
    with pytest.raises(DataError, match="67% of the first 300 images show no plane"):
        rates(300, 400, third)
    small = AbsurdRates(config)
    with pytest.raises(DataError, match="60% of the first 100 images"):
        small(100, 100, next(results_of(0.6)))
    fine = AbsurdRates(config)
    for done, result in enumerate(results_of(0.5, 0.5, 0.5, 0.5), 1):
        fine(100 * done, 400, result)


def test_strange_rates_are_named() -> None:
    usual = {f"plane/{plane}": 0.5 for plane in PLANE_NAMES} | {
        "no_plane": 0.05, "front_and_back": 0.0, "visible_keypoints": 9.0, "annotated_planes_agree": 0.93,
    }  # fmt: skip
    assert rate_warnings(usual) == []
    strange = {
        "plane/front": "the front plane is seen in 0.0%", "plane/side": "the side plane is seen in 100.0%",
        "no_plane": "30% of the images show no plane", "front_and_back": "2.0% of the images show front and back",
        "visible_keypoints": "only 2.5 keypoints", "annotated_planes_agree": "60% of the planes agree",
    }  # fmt: skip
    values = {"plane/front": 0.0, "plane/side": 1.0, "no_plane": 0.3, "front_and_back": 0.02, "visible_keypoints": 2.5,
              "annotated_planes_agree": 0.6}  # fmt: skip
    for name, words in strange.items():
        (warning,) = rate_warnings(usual | {name: values[name]})
        assert words in warning
    assert "side          50.0      65.8" in rates_table(usual)


def test_where_a_network_runs() -> None:
    def old() -> bool:
        return False

    def new() -> bool:
        return True

    on_gpu = NetworkRun(device="cuda", precision="bf16", batch_size=32)
    assert resolve_run(NetworkRunConfig(), gpus_have_bf16=new) == on_gpu
    assert resolve_run(NetworkRunConfig(), gpus_have_bf16=old) == replace(on_gpu, precision="float32")
    assert resolve_run(NetworkRunConfig(precision="bf16"), gpus_have_bf16=old) == on_gpu
    assert resolve_run(NetworkRunConfig(precision="float32"), gpus_have_bf16=new).precision == "float32"
    here = resolve_run(NetworkRunConfig(device="cpu", precision="float32"), gpus_have_bf16=new)
    assert (here.device, here.precision) == ("cpu", "float32")
    with pytest.raises(ValueError, match="there is no GPU"):
        resolve_run(NetworkRunConfig(device="cuda"), gpus_have_bf16=None)


def test_the_job_adds_keypoints_draws_them_and_tells_its_ends_apart(
    tmp_path: Path,
    source: Path,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["add_keypoints.py", "--no-ray", *arguments])
        return add_keypoints.main()

    target, picture = str(tmp_path / "target"), tmp_path / "keypoints.png"
    settings = ["network.precision=float32", "max_without_plane=1", "fitted_thresholds=false"]
    assert run(checkpoint, str(source), target, *settings, "--pictures", str(picture)) == 0
    printed = capsys.readouterr().out
    count = len(open_shards(source).index)
    assert f"{count} ({count} now, " in printed
    assert f"{count} keypoints" in printed
    assert "VeRi-776" in printed
    assert picture.stat().st_size > 1000
    assert run(checkpoint, str(source), target, *settings) == 0
    assert f"{count} (all there before)" in capsys.readouterr().out
    assert run(checkpoint, str(source), target, "network.batch_sise=2") == 2
    assert "batch_size" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert run(checkpoint, str(source), str(tmp_path / "gpu"), "network.device=cuda") == 2
        assert "there is no GPU" in capsys.readouterr().err
    assert run(str(tmp_path / "nothing"), str(source), target) == 2
    assert run(checkpoint, str(tmp_path / "nothing"), target, "fitted_thresholds=false") == 3
    other = str(tmp_path / "other")
    assert run(checkpoint, str(source), other) == 2
    assert "no evaluation has fitted visibility thresholds" in capsys.readouterr().err
    assert run(checkpoint, str(source), other, "max_without_plane=0", "fitted_thresholds=false") == 3
    assert "show no plane at all" in capsys.readouterr().err
    assert not Path(other).exists()
