"""What failed workers said, and which failures end a run at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from cluster import train_loop, worker_failures
from cluster.run_marks import EndMark, GivenUp
from cluster.train_loop import train_worker
from cluster.worker_failures import FailureMessages, words_of_ranks
from reid.build.metrics_log import read_metrics
from reid.build.run_folder import open_run
from reid.config import Experiment
from reid.contracts import DataError
from reid.storage import open_location
from tests.cluster.conftest import tiny_experiment


def _texts(folder: Path) -> list[str]:
    return [row["text"] for row in read_metrics(open_location(folder)) if row["kind"] == "message"]


def test_every_failure_is_told_with_what_comes_next(tmp_path: Path) -> None:
    messages = FailureMessages(str(tmp_path), max_failures=1)
    messages.after_exception(None, {1: RuntimeError("bus is gone"), 0: RuntimeError("bus is gone")})
    taken_away = RuntimeError("node drained")
    taken_away.preempted = True  # type: ignore[attr-defined]
    messages.after_exception(None, {0: taken_away})
    messages.after_exception(None, {0: RuntimeError("bus is gone")})
    assert sorted(_texts(tmp_path)) == [
        "rank 0: bus is gone\nfailure 2, cluster.max_failures is 1: the run ends",
        "rank 0: node drained\nits node was taken away: the workers start anew at the newest checkpoint",
        "rank 1, 0: bus is gone\nfailure 1, cluster.max_failures is 1: the workers start anew at the newest checkpoint",
    ]


def test_what_ends_the_run_is_left_to_the_driver(tmp_path: Path) -> None:
    EndMark(open_location(tmp_path)).put(ValueError("wrong"), rank=0)
    FailureMessages(str(tmp_path), max_failures=1).after_exception(None, {0: ValueError("wrong")})
    assert _texts(tmp_path) == []


def test_a_storage_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("storage is out")

    monkeypatch.setattr(worker_failures, "open_location", fail)
    FailureMessages(str(tmp_path), max_failures=1).after_exception(None, {0: RuntimeError("bus is gone")})
    assert "could not be told" in caplog.text


def test_long_texts_keep_their_beginning_and_their_end_and_notes_are_said() -> None:
    error = RuntimeError("first words " + "x" * 5000 + " last words")
    error.add_note("check the key")
    text = words_of_ranks({3: error})
    assert text.startswith("rank 3: first words")
    assert text.endswith("last words\ncheck the key")
    assert len(text) < 2100


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Experiment]:
    """A worker that is about to train; its driver has written the configuration."""
    experiment = tiny_experiment(tmp_path / "nowhere", tmp_path / "runs")
    open_run(experiment).write_config(experiment)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    yield experiment
    for handler in [own for own in logging.getLogger("reid").handlers if isinstance(own, train_loop.MessageRows)]:
        logging.getLogger("reid").removeHandler(handler)


def _config(experiment: Experiment) -> dict[str, Any]:
    return {"experiment": experiment.model_dump(mode="json"), "resume_anyway": False}


def _end(experiment: Experiment) -> BaseException | None:
    return EndMark(open_run(experiment).location).error()


@pytest.mark.parametrize(
    "refusal", [PermissionError("not yours"), OSError("AWS Error ACCESS_DENIED during HeadObject")]
)
def test_refused_access_ends_the_run_at_the_first_time_and_keeps_its_advice(
    worker: Experiment, monkeypatch: pytest.MonkeyPatch, refusal: OSError
) -> None:
    refusal.add_note("access was refused: check AWS_PROFILE")

    def refuse(*_: object, **__: object) -> None:
        raise refusal

    monkeypatch.setattr(train_loop, "_train", refuse)
    with pytest.raises(OSError, match=str(refusal)):
        train_worker(_config(worker))
    end = _end(worker)
    assert isinstance(end, GivenUp)
    assert f"{refusal}\naccess was refused: check AWS_PROFILE" in str(end)


def test_a_storage_that_may_come_back_is_tried_again(worker: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("AWS Error SLOW_DOWN during GetObject")

    monkeypatch.setattr(train_loop, "_train", fail)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        train_worker(_config(worker))
    assert _end(worker) is None


def test_data_that_one_node_lacks_are_refused_with_its_name(
    worker: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-b")
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: train_loop.torch.device("cpu"))
    with pytest.raises(DataError):
        train_worker(_config(worker))
    end = _end(worker)
    assert isinstance(end, DataError)
    assert str(end).startswith("rank 1 on node-b: ")
    assert "The driver found no fault with" in str(end)


def test_a_run_folder_that_one_node_does_not_see_is_refused(worker: Experiment) -> None:
    (Path(worker.runs) / worker.name / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"is not shared with .*: runs=.* must be storage that all nodes see"):
        train_worker(_config(worker))
