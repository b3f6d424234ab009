"""A detector that starts from another run's weights: the same bits, or an error that names the setting."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster.trainer import with_absolute_addresses
from reid.build.checkpoints import checkpoint_digest
from reid.build.initial_weights import load_initial_weights
from reid.build.training import build_step, describe_run
from reid.config import KeypointExperiment, load_experiment
from reid.models.hourglass import Hourglass, HourglassConfig
from reid.storage import open_location, sha256_of
from reid.training.checkpoint import CheckpointStore
from reid.training.snapshot import Position, take_snapshot

CPU = torch.device("cpu")
SHAPE = {"num_stacks": 1, "channels": 8, "depth": 2}


def experiment_with(*overrides: str) -> KeypointExperiment:
    model = [f"model.{key}={value}" for key, value in SHAPE.items()]
    return load_experiment(None, [*model, "training.step.precision=float32", *overrides], KeypointExperiment)


def weights_of(experiment: KeypointExperiment, *, pretrained: bool = True) -> dict[str, torch.Tensor]:
    return build_step(experiment, 5, CPU, pretrained=pretrained).bare_model.state_dict()


def detector_from(weights: Path, **values: object) -> Hourglass:
    return Hourglass(HourglassConfig.model_validate(SHAPE | {"weights": str(weights)} | values))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose moving average differs from its weights."""
    folder = tmp_path_factory.mktemp("runs") / "trained" / "checkpoints"
    experiment = experiment_with("seed=1", "training.step.ema_decay=0.5")
    step = build_step(experiment, 5, CPU)
    assert step.ema is not None
    for value in step.ema.weights().values():
        value.add_(1)
    name = CheckpointStore(open_location(folder)).save(
        take_snapshot(step, Position(step=3), describe_run(experiment, ""))
    )
    assert name is not None
    return folder / name


@pytest.mark.parametrize("kind", ["checkpoint", "file"])
def test_a_run_starts_from_the_weights_that_an_evaluation_would_use(
    kind: str, checkpoint: Path, tmp_path: Path
) -> None:
    expected = CheckpointStore(open_location(checkpoint.parent)).load_model_weights(checkpoint.name)
    if kind == "checkpoint":
        source, digest = checkpoint, checkpoint_digest(open_location(checkpoint))
    else:
        source = tmp_path / "detector.safetensors"
        save_file(expected, source)
        digest = sha256_of(source)
    actual = weights_of(experiment_with(f"model.weights={source}", f"model.sha256={digest}"))
    random = weights_of(experiment_with())
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert not torch.equal(random["stem.0.weight"], actual["stem.0.weight"])
    with pytest.raises(ValueError, match=f"expected sha256 0000.* got {digest}"):
        load_initial_weights(detector_from(source, sha256="0" * 64))


def test_a_run_that_continues_or_is_evaluated_does_not_read_them(tmp_path: Path) -> None:
    gone = experiment_with(f"model.weights={tmp_path / 'gone'}")
    assert weights_of(gone, pretrained=False).keys() == weights_of(experiment_with()).keys()
    Hourglass(gone.model)  # what an evaluation builds
    with pytest.raises(FileNotFoundError, match=r"model\.weights='.*gone': expected .*does not exist"):
        weights_of(gone)


def test_where_a_run_started_does_not_bind_its_continuation(checkpoint: Path) -> None:
    started = describe_run(experiment_with(f"model.weights={checkpoint}"), "").fixed
    assert started == describe_run(experiment_with(), "").fixed
    assert started != describe_run(experiment_with("model.depth=3"), "").fixed


def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    content = bytearray((copy / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "ema.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"ema\.safetensors has changed since it was written"):
        load_initial_weights(detector_from(copy))


def test_weights_of_another_network_are_refused_by_name_and_change_nothing(checkpoint: Path) -> None:
    detector = detector_from(checkpoint, num_stacks=2)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit an hourglass of 2 stacks and 8 channels: missing \d+ \("):
        load_initial_weights(detector)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    with pytest.raises(ValueError, match=r"other shape \d+ \("):
        load_initial_weights(detector_from(checkpoint, channels=16))


def test_what_is_no_checkpoint_is_refused_with_what_to_name(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a run folder: expected one of its checkpoints, .*checkpoints/step-"):
        load_initial_weights(detector_from(checkpoint.parent.parent))
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        load_initial_weights(detector_from(tmp_path))
    other = tmp_path / "detector.pth"
    other.write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"detector\.pth: expected a checkpoint folder or a \.safetensors file"):
        load_initial_weights(detector_from(other))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"weights")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_initial_weights(detector_from(broken))
    with pytest.raises(ValueError, match="weights is None"):
        HourglassConfig(sha256="0" * 64)


def test_workers_get_the_address_from_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_addresses(experiment_with("model.weights=a/b")).model.weights == str(tmp_path / "a" / "b")
    assert with_absolute_addresses(experiment_with()).model.weights is None
    remote = experiment_with("model.weights=s3://no-such-bucket/weights.safetensors")
    assert with_absolute_addresses(remote).model.weights == remote.model.weights
