"""The command line without a cluster: what is printed, and the exit codes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray.exceptions import AuthenticationError, RayTaskError

from cluster.command_line import exit_code, run_training_job
from cluster.dry_run import failures_in_words, too_much_to_train
from cluster.evaluation import EvaluationFailed
from cluster.follower import epoch_line
from cluster.resources import joining
from cluster.trainer import TrainingFailed
from reid.config import load_experiment
from reid.contracts import DataError
from reid.storage import retry


@pytest.fixture(autouse=True)
def _keep_signal_handler() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_print_config_prints_what_reads_back_to_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_training_job("train", ["--print-config", "seed=7"]) == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_experiment(path) == load_experiment(None, ["seed=7"])


def test_a_misspelt_setting_ends_with_2_and_the_likely_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_training_job("train", ["training.loop.epoch=3"]) == 2
    assert "did you mean 'epochs'?" in capsys.readouterr().err


def test_missing_shards_end_with_3_and_their_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = [f"data.shards={tmp_path / 'gone'}", f"runs={tmp_path / 'runs'}", "name=nothing"]
    assert run_training_job("train", overrides) == 3
    last = capsys.readouterr().err.strip()
    assert last.startswith("error: data: data.shards=")
    assert "gone" in last


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("d"), 3),
        (ValueError("v"), 2),
        (OSError("o"), 2),
        (TrainingFailed("t"), 4),
        (EvaluationFailed("e"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_end_has_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    assert exit_code(work) == code
    assert capsys.readouterr().err.startswith("error: ")


def test_what_was_added_to_an_error_on_its_way_is_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    def request() -> None:
        raise OSError("AWS Error ACCESS_DENIED during GetObject")

    def work() -> None:
        try:
            retry("read", "s3://bucket/manifest.json", request)
        except OSError as error:
            raise DataError(str(error)) from error

    assert exit_code(work) == 3
    said = capsys.readouterr().err
    assert "AWS Error ACCESS_DENIED" in said
    assert "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said


def test_an_unknown_option_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_training_job("train", ["--resume", "perhaps"])
    assert caught.value.code == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval-only", "--resume-anyway"], "--resume-anyway does nothing with --eval-only"),
        (["--eval-only", "--resume", "auto"], "--resume does nothing with --eval-only"),
        (["--print-config", "--resume", "must"], "--resume does nothing with --print-config"),
        (["--resume-anyway", "--resume", "never"], "--resume-anyway does nothing with --resume never"),
        (["--dry-run", "--eval-only"], "--dry-run and --eval-only are two different things"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_training_job("train", options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AuthenticationError("no token was found"), "without its token: set RAY_AUTH_MODE=token"),
        (RuntimeError("Version mismatch: Ray 2.1 there,\n 2.2 here"), "Ray 2.1 there, 2.2 here; install the cluster's"),
    ],
)
def test_a_cluster_that_cannot_be_joined_ends_with_2_and_what_to_do(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with joining("10.0.0.1:6379"):
            raise error

    assert exit_code(work) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the Ray cluster 10.0.0.1:6379 ")
    assert message in said


def test_memory_that_a_dry_run_lacks_is_a_matter_of_settings() -> None:
    experiment = load_experiment(None, ["cluster.num_workers=2"])
    task_error = RayTaskError("trial", "traceback", torch.OutOfMemoryError("CUDA out of memory.\nlong"))
    with (
        pytest.raises(
            ValueError, match=r"64 images / 2 worker\(s\) = 32 images of 256x256 .*num_workers.*of memory\.\)"
        ),
        failures_in_words(too_much_to_train(experiment)),
    ):
        raise task_error


def test_the_line_of_an_epoch_holds_the_figures_a_person_wants() -> None:
    row = {
        "epoch": 0, "step": 12, "loss": 6.9, "loss/identity": 4.1, "loss/planes": 0.6, "valid_anchors/front": 0.47,
        "valid_anchors/top": 0.78, "valid_anchors/global": 1.0, "learning_rate": 1.79e-4, "images_per_second": 14.2,
        "data_waiting": 0.002, "updates_skipped": 1,
    }  # fmt: skip
    line = epoch_line(row, 5)
    assert "epoch 1/5" in line
    assert "= identity 4.100 planes 0.600" in line
    assert "planes 47/78%" in line
    assert "1 updates skipped" in line
