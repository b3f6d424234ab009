"""The weights that a new run starts from: another run's checkpoint, or a file."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights, ResNet34_Weights, ResNet50_Weights, ResNet101_Weights

from reid.build.checkpoints import checkpoint_digest
from reid.config import AnyExperiment, KeypointExperiment
from reid.models.backbone import BackboneConfig
from reid.models.hourglass import Hourglass
from reid.models.state_dict import load_fitting_state
from reid.storage import Location, exists, list_names, open_location, read_bytes, sha256_of
from reid.training.checkpoint import CheckpointStore
from reid.training.checkpoint_files import tensors_from_bytes

logger = logging.getLogger(__name__)

CACHE: Final = "cache"
"""As `model.backbone.weights`: the file of torchvision's ImageNet weights in torch's local cache."""
_IMAGENET_WEIGHTS: Final = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
}
_SAFETENSORS: Final = ".safetensors"
_PICKLED: Final = (".pth", ".pt")
_DETECTOR_SUFFIXES: Final[tuple[str, ...]] = (_SAFETENSORS,)
_BACKBONE_SUFFIXES: Final[tuple[str, ...]] = (_SAFETENSORS, *_PICKLED)


def first_weights(experiment: AnyExperiment) -> tuple[str, str | None]:
    """The setting that names where a new run starts, and its value."""
    if isinstance(experiment, KeypointExperiment):
        return "model.weights", experiment.model.weights
    return "model.backbone.weights", experiment.model.backbone.weights


def check_first_weights(experiment: AnyExperiment) -> None:
    """Refuses first weights that do not exist, before anything is started for them.

    What `cache` means is not looked for: it lies on the machines of the workers.

    Raises:
        ValueError: There is no such checkpoint or file.
    """
    key, weights = first_weights(experiment)
    if weights is None or weights == CACHE:
        return
    location = open_location(weights)
    if not exists(location):
        suffixes = _DETECTOR_SUFFIXES if isinstance(experiment, KeypointExperiment) else _BACKBONE_SUFFIXES
        raise ValueError(_missing(key.removesuffix(".weights"), location, suffixes))


def _missing(section: str, location: Location, suffixes: tuple[str, ...]) -> str:
    return (
        f"{section}.weights={location.uri}: expected a checkpoint folder or a {_list(suffixes)} file, but it does"
        f" not exist; give another, or set {section}.weights to null for random ones"
    )


def load_initial_weights(detector: Hourglass) -> None:
    """Load what the detector's `weights` name into it; nothing happens when that is None.

    Of a checkpoint the weights that evaluation uses: the moving average where its run kept one.

    Raises:
        FileNotFoundError: There is no such checkpoint or file; the message names it.
        ValueError: It is damaged, has another hash, or is of another network.
    """
    config = detector.config
    if config.weights is None:
        return
    location = open_location(config.weights)
    state = _read("model", location, _DETECTOR_SUFFIXES, config.sha256)
    network = f"an hourglass of {config.num_stacks} stacks and {config.channels} channels"
    load_fitting_state(detector, state, source=location.uri, network=network)
    logger.info("detector: %d tensors from %s", len(state), location.uri)


def backbone_state(config: BackboneConfig) -> dict[str, Tensor] | None:
    """The tensors that a backbone's `weights` name, under torchvision's names; None when it starts from random ones.

    Of a checkpoint the weights that evaluation uses, and of PMANet's two last stages the global head's.

    Raises:
        FileNotFoundError: There is no such checkpoint or file; the message names it.
        ValueError: It is damaged, has another hash, or holds no backbone.
    """
    if config.weights is None:
        return None
    location, sha256 = _backbone_source(config), config.sha256
    if config.weights == CACHE:
        if not exists(location):
            raise FileNotFoundError(
                f"model.backbone.weights=cache: expected the file {location.uri}, which does not exist; download"
                f" {_IMAGENET_WEIGHTS[config.name].url} to that place yourself, name another file or a checkpoint, or"
                " set weights to null for random ones"
            )
        # torchvision's names end in the first 8 digits of the file's sha256: resnet50-0676ba61.pth.
        sha256 = sha256 or location.name.removesuffix(_PICKLED[0]).rpartition("-")[2]
    state = _read("model.backbone", location, _BACKBONE_SUFFIXES, sha256)
    if not location.name.endswith(_BACKBONE_SUFFIXES):
        state = _backbone_of(state, location)
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    logger.info("backbone %s: %d tensors from %s", config.name, len(state), location.uri)
    return state


def _backbone_source(config: BackboneConfig) -> Location:
    """The file or checkpoint that `config.weights`, which is not None, means. Opens nothing."""
    if config.weights == CACHE:
        file = _IMAGENET_WEIGHTS[config.name].url.rpartition("/")[2]
        return open_location(torch.hub.get_dir()).child("checkpoints").child(file)
    assert config.weights is not None
    return open_location(config.weights)


def _read(section: str, location: Location, suffixes: tuple[str, ...], sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder or of a file with one of the suffixes, compared with the expected hash."""
    if not exists(location):
        raise FileNotFoundError(_missing(section, location, suffixes))
    if location.name.endswith(suffixes):
        data = read_bytes(location)
        _check_hash(location, sha256_of(data), sha256)
        return (
            tensors_from_bytes(data, location.uri) if location.name.endswith(_SAFETENSORS) else _plain(data, location)
        )
    if location.is_local and not location.local_path.is_dir():
        raise ValueError(f"{section}.weights={location.uri}: expected a checkpoint folder or a {_list(suffixes)} file")
    if "checkpoints" in list_names(location):
        raise ValueError(
            f"{section}.weights={location.uri} is a run folder: expected one of its checkpoints,"
            f" {location.child('checkpoints').uri}/step-..."
        )
    state = CheckpointStore(location.parent).load_model_weights(location.name)
    _check_hash(location, checkpoint_digest(location), sha256)
    return state


def _check_hash(location: Location, actual: str, expected: str | None) -> None:
    if expected is not None and not actual.startswith(expected):
        raise ValueError(f"{location.uri}: expected sha256 {expected}, got {actual}; it is damaged or another one")


def _plain(data: bytes, location: Location) -> dict[str, Tensor]:
    """A state dict that `torch.save` wrote; nothing but tensors is ever unpickled."""
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{location.uri} is not a state dict that torch.save wrote: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{location.uri}: expected a plain state dict (name -> tensor) with the keys of torchvision's ResNet"
        )
    return state


def _backbone_of(state: Mapping[str, Tensor], location: Location) -> dict[str, Tensor]:
    """The backbone in the state of a whole network of this project, under torchvision's names."""
    for prefixes in (
        {"backbone.": ""},
        {"trunk.": "", "global_stage.": "layer4."},
        {"trunk.": "", "part_stage.": "layer4."},
    ):
        if all(any(name.startswith(prefix) for name in state) for prefix in prefixes):
            return {
                new + name.removeprefix(prefix): value
                for prefix, new in prefixes.items()
                for name, value in state.items()
                if name.startswith(prefix)
            }
    raise ValueError(f"{location.uri} is a checkpoint without a ResNet: expected one of PPT, PANet or PMANet")


def _list(suffixes: tuple[str, ...]) -> str:
    *others, last = suffixes
    return f"{', '.join(others)} or {last}" if others else last
