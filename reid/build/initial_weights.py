"""The weights that a new run of the keypoint detector starts from: another run's checkpoint, or a file."""

from __future__ import annotations

import logging

from torch import Tensor

from reid.build.checkpoints import checkpoint_digest
from reid.models.hourglass import Hourglass
from reid.models.state_dict import load_fitting_state
from reid.storage import Location, exists, list_names, open_location, read_bytes, sha256_of
from reid.training.checkpoint import CheckpointStore
from reid.training.checkpoint_files import tensors_from_bytes

logger = logging.getLogger(__name__)

_SUFFIX = ".safetensors"


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
    if not exists(location):
        raise FileNotFoundError(
            f"model.weights={config.weights!r}: expected the checkpoint folder or {_SUFFIX} file {location.uri}, which"
            " does not exist; give another, or set model.weights to null for random ones"
        )
    state, digest = _file(location) if location.name.endswith(_SUFFIX) else _checkpoint(location)
    if config.sha256 is not None and digest != config.sha256:
        raise ValueError(f"{location.uri}: expected sha256 {config.sha256}, got {digest}; it is damaged or another one")
    network = f"an hourglass of {config.num_stacks} stacks and {config.channels} channels"
    load_fitting_state(detector, state, source=location.uri, network=network)
    logger.info("detector: %d tensors from %s", len(state), location.uri)


def _file(location: Location) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file and its sha256."""
    data = read_bytes(location)
    return tensors_from_bytes(data, location.uri), sha256_of(data)


def _checkpoint(location: Location) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint folder, each file verified, and the sha256 of its manifest."""
    if location.is_local and not location.local_path.is_dir():
        raise ValueError(f"model.weights={location.uri}: expected a checkpoint folder or a {_SUFFIX} file")
    if "checkpoints" in list_names(location):
        raise ValueError(
            f"model.weights={location.uri} is a run folder: expected one of its checkpoints,"
            f" {location.child('checkpoints').uri}/step-..."
        )
    return CheckpointStore(location.parent).load_model_weights(location.name), checkpoint_digest(location)
