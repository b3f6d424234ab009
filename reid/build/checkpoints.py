"""What a checkpoint folder says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol

from torch import Tensor

from reid.config import AnyExperiment, SomeExperiment, experiment_of
from reid.storage import Location, exists, read_bytes, sha256_of
from reid.training.checkpoint import CheckpointStore
from reid.training.checkpoint_files import MANIFEST_NAME, CheckpointDamagedError
from reid.training.snapshot import RunDescription


class EvaluatedCheckpoint(Protocol):
    """What a result says about the checkpoint that it is of."""

    @property
    def checkpoint_hash(self) -> str:
        """sha256 of the checkpoint's manifest, which holds the hashes of its files."""

    @property
    def data_hash(self) -> str:
        """Hash of the data set it was trained on."""


@dataclass(frozen=True)
class CheckpointIdentity:
    """A checkpoint without its weights."""

    checkpoint_hash: str
    data_hash: str


@dataclass(frozen=True)
class TrainedRun(Generic[SomeExperiment]):
    """What an evaluation takes from a checkpoint."""

    experiment: SomeExperiment
    """The run that wrote it."""
    weights: Mapping[str, Tensor]
    """Verified, on the processor: the moving average where the run keeps one."""
    checkpoint_hash: str
    """sha256 of the checkpoint's manifest, which holds the hashes of its files."""
    data_hash: str
    """Hash of the data set it was trained on."""


def load_trained_experiment(checkpoint: Location) -> AnyExperiment:
    """The configuration of the run that wrote a checkpoint folder.

    Raises:
        ValueError: The folder is no sound checkpoint.
    """
    return experiment_of(_run_of(checkpoint).config)


def checkpoint_digest(checkpoint: Location) -> str:
    """sha256 of a checkpoint's manifest, which holds the hashes of its files."""
    return sha256_of(read_bytes(checkpoint.child(MANIFEST_NAME)))


def identify_checkpoint(checkpoint: Location) -> CheckpointIdentity:
    """The hashes of a checkpoint folder; no weights are read.

    Raises:
        ValueError: The folder is no sound checkpoint.
    """
    run = _run_of(checkpoint)
    return CheckpointIdentity(checkpoint_hash=checkpoint_digest(checkpoint), data_hash=run.data_hash)


def load_trained_run(checkpoint: Location, *kinds: type[SomeExperiment]) -> TrainedRun[SomeExperiment]:
    """Configuration, verified weights and hashes of a checkpoint folder.

    Args:
        checkpoint: The folder.
        kinds: What must have been trained, one of these.

    Raises:
        ValueError: The folder is no sound checkpoint, or of another kind; the weights are not read then.
    """
    run = _run_of(checkpoint)
    experiment = experiment_of(run.config)
    if not isinstance(experiment, kinds):
        wanted = " or ".join(kind.model_fields["task"].default for kind in kinds)
        raise ValueError(f"{checkpoint.uri} is a checkpoint of task {experiment.task}, expected one of task {wanted}")
    return TrainedRun(
        experiment=experiment,
        weights=CheckpointStore(checkpoint.parent).load_model_weights(checkpoint.name),
        checkpoint_hash=checkpoint_digest(checkpoint),
        data_hash=run.data_hash,
    )


def _run_of(checkpoint: Location) -> RunDescription:
    """The run that wrote a checkpoint folder; ValueError for anything else, in the words of what it is."""
    try:
        return CheckpointStore(checkpoint.parent).load_run(checkpoint.name)
    except (CheckpointDamagedError, NotADirectoryError):
        _refuse_other_paths(checkpoint)
        raise


def _refuse_other_paths(checkpoint: Location) -> None:
    """ValueError for what is no checkpoint folder at all, with the one that was probably meant."""
    expected = "expected a checkpoint folder, such as runs/NAME/checkpoints/step-00001200"
    if checkpoint.is_local and checkpoint.local_path.is_file():
        raise ValueError(
            f"{checkpoint.uri} is a file: {expected} (weights of other programs are for model.backbone.weights of a new"
            " run)"
        )
    if not exists(checkpoint):
        raise ValueError(f"{checkpoint.uri} does not exist: {expected}")
    for folder, what in ((checkpoint, "a folder of checkpoints"), (checkpoint.child("checkpoints"), "a run folder")):
        names = CheckpointStore(folder).names()
        if names:
            raise ValueError(
                f"{checkpoint.uri} is {what}: name one of them, the newest is {folder.child(names[-1]).uri}"
            )
