"""Runs that start from a file or another run's weights: the same bits, never a download, or an error that says what."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from cluster.trainer import with_absolute_addresses
from reid.build.checkpoints import checkpoint_digest
from reid.build.initial_weights import backbone_state, load_initial_weights
from reid.build.training import build_model, build_step, describe_run
from reid.config import (
    Experiment,
    KeypointExperiment,
    PANetExperiment,
    PMNetExperiment,
    ReidExperiment,
    load_experiment,
)
from reid.models.backbone import BackboneConfig
from reid.models.hourglass import Hourglass, HourglassConfig
from reid.models.pmnet import PMNet
from reid.storage import open_location, sha256_of
from reid.training.checkpoint import CheckpointStore
from reid.training.snapshot import Position, take_snapshot
from tests.training_runs import assert_same_tensors

CPU = torch.device("cpu")


class NotATensor:
    """What a state dict must not hold."""


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
    assert_same_tensors(expected, actual)
    assert not torch.equal(random["stem.0.weight"], actual["stem.0.weight"])
    with pytest.raises(ValueError, match=f"expected sha256 0000.* got {digest}"):
        load_initial_weights(detector_from(source, sha256="0" * 64))


def test_a_run_that_continues_or_is_evaluated_does_not_read_them(tmp_path: Path) -> None:
    gone = experiment_with(f"model.weights={tmp_path / 'gone'}")
    assert weights_of(gone, pretrained=False).keys() == weights_of(experiment_with()).keys()
    Hourglass(gone.model)  # what an evaluation builds
    with pytest.raises(FileNotFoundError, match=r"model\.weights=.*gone: expected .*does not exist"):
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
    assert_same_tensors(before, detector.state_dict())
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


TINY = ("training.step.precision=float32", "model.backbone.name=resnet18", "model.backbone.weights=null")
NETWORKS: dict[type[ReidExperiment], tuple[str, ...]] = {
    Experiment: TINY,
    PANetExperiment: (*TINY, "model.decoder_channels=[8,8,8]"),
    PMNetExperiment: (*TINY, "model.global_head.channels=8", "model.part_head.branch_channels=8"),
}


def backbone_weights(experiment: ReidExperiment, num_classes: int = 3) -> dict[str, torch.Tensor]:
    """Of a network that has just been built, under torchvision's names."""
    model = build_model(experiment, num_classes)
    if isinstance(model, PMNet):
        assert model.global_stage is not None
        assert model.part_stage is not None
        assert_same_tensors(model.global_stage.state_dict(), model.part_stage.state_dict())
        return {**model.trunk.state_dict(), **model.global_stage.state_dict(prefix="layer4.")}
    return model.backbone.state_dict()


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None)


@pytest.fixture(params=[".pth", ".safetensors"])
def weights_file(request: pytest.FixtureRequest, tmp_path: Path, network: torch.nn.Module) -> Path:
    path = tmp_path / f"weights{request.param}"
    if request.param == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    return path


def backbone_from(source: Path | str, **values: object) -> BackboneConfig:
    return BackboneConfig.model_validate({"name": "resnet18", "weights": str(source)} | values)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_starts_from_torchvisions_files(
    kind: type[ReidExperiment], weights_file: Path, network: torch.nn.Module
) -> None:
    sha256 = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    source = [f"model.backbone.weights={weights_file}", f"model.backbone.sha256={sha256}"]
    expected = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    assert_same_tensors(backbone_weights(load_experiment(None, [*NETWORKS[kind], *source], kind)), expected)


@pytest.mark.parametrize("learned_by", NETWORKS)
@pytest.mark.parametrize("kind", [Experiment, PMNetExperiment])
def test_every_network_starts_from_the_backbone_of_every_other(
    kind: type[ReidExperiment], learned_by: type[ReidExperiment], tmp_path: Path
) -> None:
    trained = load_experiment(None, [*NETWORKS[learned_by], "seed=1", "training.step.ema_decay=0.5"], learned_by)
    step = build_step(trained, 5, CPU)
    assert step.ema is not None
    for average in step.ema.weights().values():
        average.add_(1)
    if learned_by is PMNetExperiment:  # whose last stages differ once they are trained
        step.ema.weights()["part_stage.0.conv1.weight"].add_(1)
    store = CheckpointStore(open_location(tmp_path / "checkpoints"))
    name = store.save(take_snapshot(step, Position(step=3), describe_run(trained, "")))
    assert name is not None
    folder = tmp_path / "checkpoints" / name
    actual = backbone_weights(load_experiment(None, [*NETWORKS[kind], f"model.backbone.weights={folder}"], kind), 7)
    state = store.load_model_weights(name)
    trunk, last = ("trunk.", "global_stage.") if learned_by is PMNetExperiment else ("backbone.", "backbone.layer4.")
    assert torch.equal(actual["conv1.weight"], state[trunk + "conv1.weight"])
    assert torch.equal(actual["layer3.1.bn2.running_var"], state[trunk + "layer3.1.bn2.running_var"])
    assert torch.equal(actual["layer4.0.conv1.weight"], state[last + "0.conv1.weight"])
    digest = checkpoint_digest(open_location(folder))
    assert backbone_state(backbone_from(folder, sha256=digest)) is not None
    with pytest.raises(ValueError, match=f"expected sha256 0000.* got {digest}"):
        backbone_state(backbone_from(folder, sha256="0" * 64))


def test_a_backbone_of_another_hash_or_network_is_refused(weights_file: Path) -> None:
    with pytest.raises(ValueError, match="expected sha256 0000"):
        backbone_state(backbone_from(weights_file, sha256="0" * 64))
    deeper = load_experiment(None, [*TINY, "model.backbone.name=resnet50", f"model.backbone.weights={weights_file}"])
    with pytest.raises(ValueError, match=r"does not fit torchvision's resnet50: missing \d+ \(layer1"):
        build_model(deeper, 3)


def test_what_holds_no_backbone_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(ValueError, match="plain state dict"):
        backbone_state(backbone_from(path))
    path.write_bytes(pickle.dumps(NotATensor(), protocol=2))
    with pytest.raises(ValueError, match=r"whole\.pth is not a state dict that torch\.save wrote"):
        backbone_state(backbone_from(path))
    with pytest.raises(ValueError, match="a checkpoint without a ResNet: expected one of PPT, PANet or PMANet"):
        backbone_state(backbone_from(checkpoint))
    with pytest.raises(ValueError, match=r"model\.backbone\.weights=.* is a run folder"):
        backbone_state(backbone_from(checkpoint.parent.parent))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: expected .* but it does not exist"):
        backbone_state(backbone_from(tmp_path / "nowhere.pth"))


def test_the_cache_is_read_but_never_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = backbone_from("cache")
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    with pytest.raises(FileNotFoundError, match=r"resnet18-f37072fd\.pth.*download https://"):
        backbone_state(config)
    assert not path.exists()
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    with pytest.raises(ValueError, match="expected sha256 f37072fd"):  # not the file of that name
        backbone_state(config)


def test_workers_get_the_address_from_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_addresses(experiment_with("model.weights=a/b")).model.weights == str(tmp_path / "a" / "b")
    assert with_absolute_addresses(experiment_with()).model.weights is None
    remote = experiment_with("model.weights=s3://no-such-bucket/weights.safetensors")
    assert with_absolute_addresses(remote).model.weights == remote.model.weights
    for given, expected in (("a.pth", str(tmp_path / "a.pth")), ("cache", "cache"), ("null", None)):
        absolute = with_absolute_addresses(load_experiment(None, [f"model.backbone.weights={given}"]))
        assert absolute.model.backbone.weights == expected
