"""The follower of a run, without a cluster: what fails beside training must not hide how training ended."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cluster.follower import RunFollower, epoch_line
from reid.build.metrics_log import MetricsLog
from reid.build.run_folder import open_run
from reid.config import Experiment, load_experiment
from reid.evaluation.metrics import RetrievalMetrics
from reid.evaluation.results import RetrievalResult
from reid.training.run_lock import RunLock


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    experiment = load_experiment(None, [f"runs={tmp_path}", "name=followed"])
    folder = open_run(experiment)
    MetricsLog(folder.location).append("epoch", {"step": 10, "epoch": 0, "loss": 2.0})
    return experiment


def follower_of(experiment: Experiment) -> RunFollower:
    folder = open_run(experiment)
    return RunFollower(experiment, folder, RunLock(folder.location))


def test_merged_metrics_are_there_after_a_run_that_failed(experiment: Experiment) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), follower_of(experiment):
        raise RuntimeError("out of memory")
    merged = open_run(experiment).location.child("metrics.jsonl").local_path
    assert merged.read_text() == '{"kind": "epoch", "step": 10, "epoch": 0, "loss": 2.0}\n'


def test_a_folder_that_refuses_to_be_written_does_not_hide_how_the_run_ended(
    experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(experiment).location.local_path
    (run / "metrics.jsonl" / "in the way").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="out of memory"), follower_of(experiment):
        raise RuntimeError("out of memory")
    assert "the follower met an error and goes on" in caplog.text
    assert "metrics.jsonl" in caplog.text
    caplog.clear()
    with follower_of(experiment):
        pass
    assert "metrics.jsonl" in caplog.text


def test_images_that_were_replaced_stand_in_the_line_of_the_epoch() -> None:
    row = {
        "epoch": 0,
        "step": 3,
        "loss": 1.0,
        "samples_skipped/image_truncated": 2,
        "samples_skipped/image_unreadable": 1,
    }
    assert epoch_line(row, 2).endswith("3 unreadable images replaced")


def test_a_driver_that_comes_later_knows_which_checkpoint_was_the_best(experiment: Experiment) -> None:
    folder = open_run(experiment)
    settings = experiment.evaluation.model_dump(mode="json")
    for name, value in (("step-00000010", 0.6), ("step-00000020", 0.7), ("step-00000030", 0.5)):
        cmc = {1: 0.5, 5: 0.75, 10: 1.0}
        metrics = RetrievalMetrics(mAP=value, cmc=cmc, mINP=0.1, num_queries=4, num_valid_queries=4)
        result = RetrievalResult(protocol="veri776", metrics=metrics, checkpoint_hash="a", manifest_hash="b")
        folder.write_evaluation(name, {**result.to_json(), "settings": settings})
    folder.write_evaluation("step-00000040", {"error": "out of memory"})
    assert follower_of(experiment)._best == (0.7, "step-00000020")


def test_what_workers_say_keeps_its_level(experiment: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(open_run(experiment).location)
    log.append("message", {"step": 10, "text": "computing in fp16 on a T4", "level": "INFO"})
    log.append("message", {"step": 10, "text": "an image is unreadable", "level": "WARNING"})
    with caplog.at_level(logging.INFO), follower_of(experiment) as follower:
        follower._show_new_rows()
    said = {record.getMessage(): record.levelname for record in caplog.records}
    assert said["worker: computing in fp16 on a T4"] == "INFO"
    assert said["worker: an image is unreadable"] == "WARNING"
