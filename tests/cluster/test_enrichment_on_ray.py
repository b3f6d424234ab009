"""Enriching on Ray: the same set as without it, data errors that arrive as they are, and the job's exit codes."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.shard_tasks import run_on_ray
from jobs import add_masks
from reid.build.added_keypoints import AddedKeypoints, KeypointAdditionConfig
from reid.build.keypoint_evaluation import TrainedDetector
from reid.build.network_additions import NetworkRun
from reid.config import KeypointExperiment
from reid.contracts import DataError
from reid.data.enrichment import enrich_shards
from reid.data.shard_set import open_shards
from reid.data.shards import pack_shards
from reid.data.verify import verify_shards
from reid.models.hourglass import Hourglass, HourglassConfig
from tests.unit.data.enrichments import Painted
from tests.unit.data.raw_images import SMALL, draw_records


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_enriching_on_ray_gives_the_same_set_as_enriching_alone(tmp_path: Path) -> None:
    records = draw_records(tmp_path / "raw", {"train": [3] * 12, "query": [1] * 4, "gallery": [2] * 4})
    pack_shards(records, tmp_path / "source", SMALL.model_copy(update={"min_train_shards": 8}))
    expected = enrich_shards(tmp_path / "source", tmp_path / "alone", Painted())
    done: list[int] = []
    actual = enrich_shards(
        tmp_path / "source",
        tmp_path / "ray",
        Painted(),
        run_tasks=run_on_ray,
        progress=lambda number, total, _: done.append(number),
    )
    assert actual == expected
    assert done == sorted(done)
    assert (len(done), done[-1]) == (10, 48)
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "ray" / path.name).read_bytes()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_network_travels_to_the_workers_and_gives_the_same_set(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = HourglassConfig(num_stacks=1, channels=8, depth=1)
    experiment = KeypointExperiment.model_validate(
        {"model": config.model_dump(), "data": {"transform": {"height": 16, "width": 16}}}
    )
    trained = TrainedDetector(
        model=Hourglass(config).eval(),
        experiment=experiment,
        thresholds=np.zeros(20),
        score="peak",
        thresholds_fitted=True,
        checkpoint_hash="c",
        data_hash="d",
    )
    run = NetworkRun(device="cpu", precision="float32", batch_size=4)
    enrichment = AddedKeypoints(trained, run, KeypointAdditionConfig())
    pack_shards(draw_records(tmp_path / "raw"), tmp_path / "source", SMALL)
    expected = enrich_shards(tmp_path / "source", tmp_path / "alone", enrichment)
    run_tasks = partial(run_on_ray, num_cpus=1, num_gpus=0)
    actual = enrich_shards(tmp_path / "source", tmp_path / "ray", enrichment, run_tasks=run_tasks)
    # Threads may round differently, so not the same bytes: the same images, and the same keypoints to a hundredth.
    assert actual.additions[-1].members == expected.additions[-1].members
    ours, theirs = open_shards(tmp_path / "ray").index, open_shards(tmp_path / "alone").index
    np.testing.assert_array_equal(ours.key, theirs.key)
    assert ours.keypoint_scores is not None
    assert theirs.keypoint_scores is not None
    np.testing.assert_allclose(ours.keypoint_scores, theirs.keypoint_scores, atol=1e-4)
    same = (ours.keypoints[..., 2] > 0) == (theirs.keypoints[..., 2] > 0)
    assert same.mean() > 0.99
    both = same & (ours.keypoints[..., 2] > 0)
    assert both.any()
    assert (np.abs(ours.keypoints - theirs.keypoints)[both].max(axis=1) < 0.01).mean() > 0.95


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_damaged_source_stops_enriching_on_ray_as_a_data_error(tmp_path: Path) -> None:
    pack_shards(draw_records(tmp_path / "raw"), tmp_path / "source", SMALL)
    tar = tmp_path / "source" / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"train-000001\.tar is damaged"):
        enrich_shards(tmp_path / "source", tmp_path / "target", Painted(), run_tasks=run_on_ray)
    assert not (tmp_path / "target").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_tasks_that_no_node_can_run_are_refused_at_once(tmp_path: Path) -> None:
    pack_shards(draw_records(tmp_path / "raw"), tmp_path / "source", SMALL)
    for run_tasks in (partial(run_on_ray, num_cpus=999), partial(run_on_ray, num_gpus=1)):
        with pytest.raises(ValueError, match="but no node has them"):
            enrich_shards(tmp_path / "source", tmp_path / "target", Painted(), run_tasks=run_tasks)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray", "own_signals")
def test_the_job_works_on_a_cluster_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack_shards(draw_records(tmp_path / "raw"), tmp_path / "source", SMALL)
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    settings = ["size=32", "padding=4", "iterations=2"]
    monkeypatch.setattr(sys, "argv", ["add_masks.py", "--coarse", source, target, *settings])
    assert add_masks.main() == 0
    assert "15 (15 now, " in capsys.readouterr().out
    assert verify_shards(target, decode=True).passed


@pytest.mark.usefixtures("own_signals")
def test_addresses_inside_a_jobs_copy_and_pictures_that_cannot_be_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    pack_shards(draw_records(tmp_path / "raw"), copy / "source", SMALL)
    monkeypatch.chdir(copy)

    def refusal(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["add_masks.py", "--coarse", "--no-ray", *arguments])
        assert add_masks.main() == 2
        return capsys.readouterr().err

    assert "source=source lies in the job's copy" in refusal("source", str(tmp_path / "target"))
    assert "target=target lies in the job's copy" in refusal(str(tmp_path / "source"), "target")
    assert "--num-pictures 0" in refusal("a", "b", "--pictures", str(tmp_path / "p.png"), "--num-pictures", "0")
    assert "--pictures=p.png lies in the job's copy" in refusal("a", "b", "--pictures", "p.png")


@pytest.mark.usefixtures("own_signals")
def test_the_job_adds_masks_draws_them_and_tells_its_ends_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack_shards(draw_records(tmp_path / "raw"), tmp_path / "source", SMALL)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["add_masks.py", "--coarse", "--no-ray", *arguments])
        return add_masks.main()

    target, picture = str(tmp_path / "target"), tmp_path / "masks.png"
    settings = ["size=32", "padding=4", "iterations=2"]
    assert run(str(tmp_path / "source"), target, *settings, "--pictures", str(picture)) == 0
    printed = capsys.readouterr().out
    assert "15 (15 now, " in printed
    assert "15 mask.png" in printed
    assert picture.stat().st_size > 1000
    assert verify_shards(target, decode=True).passed
    assert (open_shards(target).index.mask_size > 0).all()
    assert run(str(tmp_path / "source"), target, *settings) == 0
    assert "15 (all there before)" in capsys.readouterr().out
    assert run(str(tmp_path / "source"), target, "size=48") == 2
    assert run(str(tmp_path / "source"), target, "sise=48") == 2
    assert run(str(tmp_path / "source"), str(tmp_path / "source")) == 2
    assert run(str(tmp_path / "source"), target, "--pictures", "masks.gif") == 2
    assert run(str(tmp_path / "nowhere"), target) == 3
