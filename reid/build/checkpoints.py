"""What a checkpoint folder says about itself."""

from __future__ import annotations

from reid.config import AnyExperiment, experiment_of
from reid.storage import Location, read_bytes, sha256_of
from reid.training.checkpoint import CheckpointStore
from reid.training.checkpoint_files import MANIFEST_NAME


def load_trained_experiment(checkpoint: Location) -> AnyExperiment:
    """The configuration of the run that wrote a checkpoint folder.

    Raises:
        ValueError: The folder is no sound checkpoint.
    """
    return experiment_of(CheckpointStore(checkpoint.parent).load_run(checkpoint.name).config)


def checkpoint_digest(checkpoint: Location) -> str:
    """sha256 of a checkpoint's manifest, which holds the hashes of its files."""
    return sha256_of(read_bytes(checkpoint.child(MANIFEST_NAME)))
