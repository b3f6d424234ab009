"""The plan of a run, printed once before it starts: every figure as the equation it comes from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from reid.build.data import annotated_rows, compared_planes, open_train_stream
from reid.config import AnyExperiment, KeypointExperiment, PANetExperiment, PMNetExperiment
from reid.data.plane_table import visible_planes
from reid.data.shard_set import ShardSet
from reid.data.stored_parts import has_part_boxes
from reid.keypoints import PLANE_NAMES
from reid.models.hourglass import STEM_STRIDE
from reid.training.schedule import learning_rate_at
from reid.training.step import describe_precision


def describe_plan(experiment: AnyExperiment, shards: ShardSet, *, device: str, resumed_from: str | None) -> str:
    """Plain text, a line a subject.

    Args:
        experiment: The run.
        shards: Its data.
        device: "cpu" or "cuda", as the cluster has it.
        resumed_from: The checkpoint that the run continues at.
    """
    plan, training, cluster = experiment.data.plan, experiment.training, experiment.cluster
    evaluation = experiment.evaluation
    manifest = shards.manifest
    stream = open_train_stream(experiment, shards, 0, 1, torch.device("cpu"))
    exposure = stream.exposure(0)
    stream.close()
    steps = exposure.num_steps
    others = ", ".join(f"{count:,} {split}" for split, count in manifest.counts.items() if split != "train")
    transform = experiment.data.transform
    train_images, accumulated = manifest.counts.get("train", 0), training.step.accumulate_batches
    lines = {
        "run": f"{experiment.name}, seed {experiment.seed}: "
        + (f"continues at {resumed_from}" if resumed_from else "new"),
        "data": f"{manifest.name}: {train_images:,} images of {manifest.num_classes:,} vehicles to train on; {others}"
        + _annotation(experiment, shards),
        "shards": f"{len(manifest.shards)} files, {manifest.num_bytes / 1e6:,.1f} MB, hash {manifest.hash[:12]}",
        "batch": (
            f"{plan.batch_size} = {_batch_parts(experiment)}{cluster.num_workers} worker(s)"
            f" x {plan.batch_size // cluster.num_workers} images of {transform.width}x{transform.height} on {device},"
            f" {describe_precision(training.step, device)}"
        ),
        "epoch": str(exposure),
        "length": (
            f"about {steps * training.loop.epochs:,} steps = {steps:,} x {training.loop.epochs} epochs"
            + (f", {accumulated} batches an update" if accumulated > 1 else "")
        ),
        "learning rate": _learning_rates(experiment),
        "model": describe_model(experiment),
        **_planes(experiment, shards),
        **_parts(experiment, shards),
        "evaluation": f"{_protocol(experiment)} every {evaluation.every_epochs} epoch(s) and at the end, on"
        f" {cluster.evaluation_workers} evaluation worker(s) while training goes on",
    }
    return as_plan("plan of the run", lines)


def as_plan(title: str, lines: Mapping[str, str]) -> str:
    """A title, and a line for each subject."""
    width = max(map(len, lines))
    return f"{title}\n" + "\n".join(f"  {key:<{width}}  {text}" for key, text in lines.items())


def _learning_rates(experiment: AnyExperiment) -> str:
    training = experiment.training
    schedule, rate, epochs = training.schedule, training.optimizer.learning_rate, training.loop.epochs
    text = f"{training.optimizer.name}: "
    if schedule.warmup_epochs:
        text += f"{rate * schedule.warmup_factor:.3g} -> {rate:.3g} over {schedule.warmup_epochs:g} epochs, then "
    if schedule.shape == "cosine":
        return text + f"cosine down to {learning_rate_at(schedule, rate, epochs, epochs):.3g}"
    rates = [learning_rate_at(schedule, rate, float(epoch), epochs) for epoch in range(epochs)]
    drops = [e for e in range(1, epochs) if e >= schedule.warmup_epochs and rates[e] < rates[e - 1] * (1 - 1e-6)]
    return text + (", ".join(f"{rates[e]:.3g} from epoch {e + 1}" for e in drops) or "constant")


def _annotation(experiment: AnyExperiment, shards: ShardSet) -> str:
    if not isinstance(experiment, KeypointExperiment):
        return ""
    trained, held_out = annotated_rows(experiment, shards)
    return f"; annotated: {len(trained):,} to train on + {len(held_out):,} of held-out vehicles"


def _batch_parts(experiment: AnyExperiment) -> str:
    match experiment:
        case KeypointExperiment():
            return ""
        case _:
            plan = experiment.data.plan
            return f"{plan.identities_per_batch} identities x {plan.images_per_identity} images = "


def _protocol(experiment: AnyExperiment) -> str:
    match experiment:
        case KeypointExperiment():
            return "keypoints"
        case _:
            return experiment.evaluation.protocol


def describe_model(experiment: AnyExperiment, *, with_first_weights: bool = True) -> str:
    """The network in a line, and where it starts from."""
    if isinstance(experiment, KeypointExperiment):
        model, transform = experiment.model, experiment.data.transform
        parts = [
            f"hourglass, {model.num_stacks} stacks of {model.channels} channels, heat maps"
            f" {transform.width // STEM_STRIDE}x{transform.height // STEM_STRIDE}, sigma {experiment.loss.sigma:g},"
            f" invisible points {experiment.loss.invisible}"
        ]
        return ", ".join([*parts, _weights(model.weights)] if with_first_weights else parts)
    backbone = experiment.model.backbone
    network = f"{backbone.name}, {_weights(backbone.weights)}" if with_first_weights else backbone.name
    if isinstance(experiment, PANetExperiment):
        return f"{network}, PANet: identities and masks"
    if isinstance(experiment, PMNetExperiment):
        return f"{network}, {_heads(experiment)}"
    if experiment.model.planes is None:
        return f"{network}, no planes: the plain baseline"
    return f"{network}, PPT planes with weights {experiment.loss.planes.plane_weights}"


def _heads(experiment: PMNetExperiment) -> str:
    model, loss = experiment.model, experiment.loss
    heads = [] if model.global_head is None else ["global head"]
    if model.part_head is not None:
        part = model.part_head
        heads.append(f"{part.num_parts} branches ({part.tasks.replace('_', ' ')}, attention {part.attention.kind})")
    if model.planes is not None:
        heads.append(f"PPT planes with weights {loss.planes.plane_weights}")
    if loss.uncertainty_from_epoch is None:
        learned = f"fixed {loss.fixed_weights}"
    else:
        learned = f"learned from epoch {loss.uncertainty_from_epoch + 1}"
    return f"PMANet: {', '.join(heads)}; identity weights {learned}"


def _planes(experiment: AnyExperiment, shards: ShardSet) -> dict[str, str]:
    """How many training images can show planes, for runs that compare them."""
    if compared_planes(experiment) is None:
        return {}
    rows = shards.index.rows("train")
    annotated = rows[shards.index.has_keypoints[rows]]
    with_keypoints = len(annotated)
    rates = visible_planes(shards.index.keypoints[annotated]).mean(axis=0)
    shown = ", ".join(f"{name} {100 * rate:.0f} %" for name, rate in zip(PLANE_NAMES, rates, strict=True))
    text = f"keypoints on {with_keypoints:,} of {len(rows):,} images, which show {shown}"
    if with_keypoints < len(rows):
        text += "; the others train without planes (jobs/add_keypoints.py computes keypoints)"
    return {"planes": text}


def _parts(experiment: AnyExperiment, shards: ShardSet) -> dict[str, str]:
    """Where the parts of the training images come from, for runs that look at parts."""
    if not isinstance(experiment, PMNetExperiment) or not experiment.model.parts_read:
        return {}
    if experiment.model.uses_stripes:
        return {"parts": f"{experiment.model.parts_read} uniform stripes for every image"}
    rows = shards.index.rows("train")
    with_boxes = int(np.count_nonzero(has_part_boxes(shards.index, rows)))
    text = f"{experiment.model.parts_read} boxes each for {with_boxes:,} of {len(rows):,} images"
    if with_boxes < len(rows):
        text += (
            f"; {len(rows) - with_boxes:,} without get uniform stripes (jobs/add_masks.py --panet computes the boxes)"
        )
    without_mask = int(np.count_nonzero(shards.index.mask_size[rows] < 0))
    if without_mask:
        text += f"; {without_mask:,} have no mask: all of the image counts as vehicle"
    return {"parts": text}


def _weights(source: str | None) -> str:
    return "random weights" if source is None else f"weights from {source}"
