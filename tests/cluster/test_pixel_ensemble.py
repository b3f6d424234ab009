"""The driver of the pixel-space ensemble on local Ray: trains what is missing, repeats nothing, ranks by them all."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster import pixel_ensemble
from cluster.pixel_ensemble import train_pixel_ensemble
from reid.config import with_overrides
from reid.contracts import DataError
from tests.cluster.conftest import tiny_experiment


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_ensemble_is_trained_once_and_takes_a_finished_global_run(
    tiny_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {"global": 10.0, "side": 2.0}
    experiment = tiny_experiment(
        tiny_shards, tmp_path / "runs", "model.planes=null", "training.loop.epochs=1", "evaluation.every_epochs=1",
        "training.schedule.warmup_epochs=0", "cluster.num_workers=1", "evaluation.num_rank_lists=0",
    )  # fmt: skip
    sets = str(tmp_path / "sets")
    first = train_pixel_ensemble(experiment, weights=weights, plane_sets=sets)
    runs = tmp_path / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["tiny", "tiny-global", "tiny-side"]
    assert [path.name for path in (tmp_path / "sets").iterdir()] == [f"{tiny_shards.name}-side-32x32"]
    stored = json.loads((runs / "tiny" / "ensemble.json").read_text())
    assert stored["figures"]["mAP"] == first.metrics.mAP
    assert stored["about"]["weights"] == weights
    times = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    with caplog.at_level(logging.INFO):
        assert train_pixel_ensemble(experiment, weights=weights, plane_sets=sets) == first
    assert "tiny-global is done" in caplog.text
    assert times == {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}

    with pytest.raises(ValueError, match=r"global_run=tiny-back: .* holds no checkpoint of its last epoch"):
        train_pixel_ensemble(experiment, weights=weights, plane_sets=sets, global_run="tiny-back")
    again = train_pixel_ensemble(experiment, weights=weights, plane_sets=sets, global_run="tiny-global")
    assert again.metrics == first.metrics
    with pytest.raises(ValueError, match=r"model\.planes is set"):
        train_pixel_ensemble(with_overrides(experiment, ["model.planes={}"]), weights=weights)
    with pytest.raises(ValueError, match="'roof'"):
        train_pixel_ensemble(experiment, weights={"global": 1.0, "roof": 1.0})


def test_no_plane_is_no_ensemble(tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_ensemble, "ray_connection", nullcontext)
    monkeypatch.setattr(pixel_ensemble, "make_plane_sets", lambda *_: ({}, ["without a network of the front: hidden"]))
    experiment = tiny_experiment(tiny_shards, tmp_path, "model.planes=null")
    with pytest.raises(DataError, match=r"no plane is left .*: without a network of the front: hidden"):
        pixel_ensemble.train_pixel_ensemble(experiment)
