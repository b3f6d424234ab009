"""Config -> everything one training worker needs, restored to where the run stands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from reid.build.code_version import code_version
from reid.build.data import open_data, open_train_stream
from reid.build.initial_weights import backbone_state, load_initial_weights
from reid.build.run_folder import RunFolder, open_run
from reid.config import (
    AnyExperiment,
    Experiment,
    KeypointExperiment,
    PANetExperiment,
    PMNetExperiment,
    ReidExperiment,
    digestible,
)
from reid.contracts import Batch, EpochResult, IntervalResult, flatten
from reid.data.shard_set import ShardSet
from reid.data.stream import TrainStream
from reid.losses.heat_maps import heat_map_loss
from reid.losses.panet import panet_loss
from reid.losses.pmnet import pmnet_loss
from reid.losses.ppt import ppt_loss
from reid.models.hourglass import Hourglass
from reid.models.panet import PANet
from reid.models.pmnet import PMNet
from reid.models.ppt import PPT
from reid.process_group import world_size
from reid.training.checkpoint import CheckpointStore
from reid.training.continuation import refuse_other_optimizer, refuse_other_run
from reid.training.loop import fit, no_wish
from reid.training.optim import build_optimizer, parameter_groups
from reid.training.randomness import seed_everything
from reid.training.snapshot import Position, RunDescription, restore_snapshot
from reid.training.step import (
    Objective,
    TrainingStep,
    images_and_keypoints,
    images_and_parts,
    images_only,
    keypoints_of,
    labels_and_masks_of,
    labels_of,
    prepare_model,
)
from reid.training.workers import Wish, mean_over_workers, rank, refuse_disagreement, share_text

logger = logging.getLogger(__name__)

SAMPLES_SKIPPED, STORAGE_RETRIES, CHECKPOINTS_FAILED = "samples_skipped/", "storage_retries/", "checkpoints_failed"
"""Names of counters, in rows and in checkpoints."""
SKIP_REASONS = ("image_truncated", "image_unreadable", "image_size_differs")
STORAGE_OPERATIONS = ("read", "list", "download")
"""What reading a shard set asks of a storage."""


@dataclass(frozen=True)
class Training:
    """A worker's part of a run, ready to go on at `start`."""

    experiment: AnyExperiment
    folder: RunFolder
    shards: ShardSet
    stream: TrainStream
    step: TrainingStep
    store: CheckpointStore
    description: RunDescription
    start: Position
    counted: Mapping[str, int] = field(default_factory=dict)
    """`counters` of the checkpoint that it continues at."""

    def mishaps(self) -> dict[str, int]:
        """What all workers have met since the beginning of the run, as far as there was any; collective.

        `samples_skipped/REASON`: unreadable images; `storage_retries/OPERATION`: requests that had to be repeated.
        """
        counts = {SAMPLES_SKIPPED + reason: self.stream.skipped[reason] for reason in SKIP_REASONS}
        counts |= {STORAGE_RETRIES + name: self.stream.retries[name] for name in STORAGE_OPERATIONS}
        now = mean_over_workers(torch.tensor(list(counts.values()), dtype=torch.float32)) * world_size()
        totals = {
            name: self.counted.get(name, 0) + round(count) for name, count in zip(counts, now.tolist(), strict=True)
        }
        return {name: total for name, total in totals.items() if total}

    def counters(self) -> dict[str, int]:
        """Totals since the beginning of the run for its checkpoints; collective."""
        return {**self.mishaps(), CHECKPOINTS_FAILED: self.store.failed}

    def results(self, wish: Callable[[], Wish] = no_wish) -> Iterator[IntervalResult | EpochResult]:
        """Trains; see `reid.training.loop.fit`."""
        training = self.experiment.training
        return fit(
            self.step,
            self.stream,
            config=training.loop,
            schedule=training.schedule,
            run=self.description,
            store=self.store,
            start=self.start,
            wish=wish,
            folder=self.folder.location,
            counters=self.counters,
            names=lambda samples: [str(key) for key in self.shards.index.key[list(samples)]],
        )


ReidModel = PPT | PANet | PMNet
"""A network with `embed`, `feature_map` and `pooling`: what retrieval needs, whatever else it learns."""


def build_model(experiment: ReidExperiment, num_classes: int, *, pretrained: bool = True) -> ReidModel:
    """The network of an experiment that is evaluated by retrieval.

    Args:
        experiment: The run.
        num_classes: Identities of the training split.
        pretrained: False leaves the backbone's weights random: a checkpoint is about to replace them.

    Raises:
        FileNotFoundError: The weights to start from are missing.
        ValueError: They are not what is expected, or of another network.
    """
    state = backbone_state(experiment.model.backbone) if pretrained else None
    match experiment:
        case Experiment(model=model):
            return PPT(model, num_classes, state)
        case PANetExperiment(model=model):
            return PANet(model, num_classes, state)
        case PMNetExperiment(model=model):
            return PMNet(model, num_classes, state)


def describe_run(experiment: AnyExperiment, data_hash: str) -> RunDescription:
    """What checkpoints say about the run, and what a resumed run is compared by."""
    return RunDescription(config=experiment.model_dump(mode="json"), fixed=digestible(experiment), data_hash=data_hash)


def build_step(
    experiment: AnyExperiment, num_classes: int, device: torch.device, *, pretrained: bool = True
) -> TrainingStep:
    """Model, loss and optimiser of a run on a device; the process group, if any, must exist.

    Args:
        experiment: The run.
        num_classes: Identities of the training split.
        device: Of this worker.
        pretrained: False leaves the weights random, for a run that is about to load a checkpoint.

    Raises:
        FileNotFoundError: The weights to start from are missing.
        ValueError: They are not what is expected, or of another network.
    """
    training = experiment.training
    seed_everything(experiment.seed)
    inputs: Callable[[Batch], tuple[Any, ...]]
    targets: Callable[[Batch], Any] = labels_of
    model: nn.Module
    match experiment:
        case KeypointExperiment():
            model = Hourglass(experiment.model)
            if pretrained:
                load_initial_weights(model)
            inputs, targets = images_only, keypoints_of
        case PANetExperiment():
            model = build_model(experiment, num_classes, pretrained=pretrained)
            inputs, targets = images_only, labels_and_masks_of
        case PMNetExperiment():
            model = build_model(experiment, num_classes, pretrained=pretrained)
            inputs = images_and_parts
        case Experiment():
            model = build_model(experiment, num_classes, pretrained=pretrained)
            inputs = images_and_keypoints
    model = prepare_model(model, training.step, device)
    optimizer = build_optimizer(parameter_groups(model, training.optimizer), training.optimizer)
    return TrainingStep(model, _objective(experiment), optimizer, training.step, inputs=inputs, targets=targets)


def _objective(experiment: AnyExperiment) -> Objective:
    """The loss of a run, which may change with the epoch."""
    match experiment:
        case KeypointExperiment(loss=heat_maps):
            return lambda output, keypoints, epoch: heat_map_loss(output, keypoints, heat_maps)
        case PANetExperiment(loss=panet):
            return lambda output, targets, epoch: panet_loss(output, targets[0], targets[1], panet, epoch)
        case PMNetExperiment(loss=pmnet):
            return lambda output, labels, epoch: pmnet_loss(output, labels, pmnet, epoch)
        case Experiment(loss=ppt):
            return lambda output, labels, epoch: ppt_loss(output, labels, ppt)


def build_training(experiment: AnyExperiment, device: torch.device, *, resume_anyway: bool = False) -> Training:
    """This worker's part of the run, restored from the newest sound checkpoint of the run folder.

    Collective: with a process group all workers call it together, and all continue at the same checkpoint.

    Args:
        experiment: The run.
        device: Of this worker.
        resume_anyway: Continue although settings differ from the checkpoint's (data set and optimiser must fit).

    Raises:
        DataError: The shards cannot be used.
        ValueError: The workers disagree, or the checkpoint belongs to another run.
    """
    folder = open_run(experiment)
    shards = open_data(experiment, verify="sizes")
    description = describe_run(experiment, shards.manifest.hash)
    refuse_disagreement(
        {"program": code_version(), "configuration": str(description.fixed), "data set": description.data_hash}
    )
    stream = open_train_stream(experiment, shards, rank(), world_size(), device)
    store = CheckpointStore(folder.checkpoints, experiment.training.checkpoint)
    # One worker looks for the newest sound checkpoint, so that all continue at the same one.
    name = share_text(store.newest() if rank() == 0 else None)
    step = build_step(experiment, shards.manifest.num_classes, device, pretrained=name is None)
    # Only some workers' gradients being scaled would be no gradient at all.
    refuse_disagreement({"fp16 (training.step.precision=float32 suits all devices)": str(step.scaler is not None)})
    start, counted = Position(), dict[str, int]()
    if name is not None:
        state = store.load(name)
        refuse_other_run(name, state.run, description, resume_anyway=resume_anyway)
        refuse_other_optimizer(name, state.optimizer, step.optimizer)
        restore_snapshot(step, state)
        start, counted = state.position, dict(state.counters)
        store.failed += counted.get(CHECKPOINTS_FAILED, 0)
        if rank() == 0:
            logger.info("continuing at %s: epoch %d, step %d", name, start.epoch + 1, start.step_in_epoch)
    if rank() == 0:
        store.remove_orphans()
    return Training(
        experiment=experiment, folder=folder, shards=shards, stream=stream, step=step, store=store,
        description=description, start=start, counted=counted,
    )  # fmt: skip


_DECIDED_AT_THE_START = ("training.loop.epochs", "model.backbone.weights", "model.weights")
"""What a run that goes on may change, but not one whose figures stand for another's."""


def finished_checkpoint(experiment: AnyExperiment) -> str | None:
    """Name of the checkpoint at the end of a run; None when the run has not come that far.

    Raises:
        ValueError: A run of that name was made with other settings, data, length or first weights; the text names them.
        DataError: The shards cannot be used.
    """
    store = CheckpointStore(open_run(experiment).checkpoints, experiment.training.checkpoint)
    newest = store.newest_position()
    if newest is None:
        return None
    name, position = newest
    saved = store.load_run(name)
    with open_data(experiment, verify="sizes") as shards:
        refuse_other_run(name, saved, describe_run(experiment, shards.manifest.hash))
    there, here = flatten(saved.config), flatten(experiment.model_dump(mode="json"))
    for key in _DECIDED_AT_THE_START:
        if there.get(key) != here.get(key):
            raise ValueError(
                f"{open_run(experiment).location.uri} is a run with {key} {there.get(key)}, expected {here.get(key)}:"
                " choose another name=..., or delete it"
            )
    return name if position.epoch >= experiment.training.loop.epochs else None
