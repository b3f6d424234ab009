"""Whether a checkpoint may continue a run: what differs between the run that wrote it and this one."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch

from reid.contracts import flatten
from reid.training.checkpoint_files import CheckpointRefusedError
from reid.training.optim import describe
from reid.training.optimizer_state import OptimizerState
from reid.training.schedule import ScheduleConfig, learning_rate_at
from reid.training.snapshot import RunDescription

logger = logging.getLogger(__name__)


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The settings in which two configurations differ, each with its path and both values.

    A setting that is null is as good as absent: an optional part that newer code knows and does not use is no
    difference.

    >>> differences({"optim": {"name": "adam", "rate": 0.1}}, {"optim": {"name": "sgd", "rate": 0.1}})
    ["optim.name: 'adam' in the checkpoint, 'sgd' now"]
    >>> differences({"rules": [{"a": 1, "b": (2,)}]}, {"rules": [{"b": [2], "a": 1}]})
    []
    """
    # Through sorted JSON: tuples become lists, and mappings inside lists are written in one order.
    old, new = (flatten(json.loads(json.dumps(content, sort_keys=True))) for content in (saved, current))
    lines = []
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) is None and new.get(path) is None:
            continue
        before = repr(old[path]) if path in old else "absent"
        after = repr(new[path]) if path in new else "absent"
        if before != after:
            lines.append(f"{path}: {before} in the checkpoint, {after} now")
    return lines


def refuse_other_run(name: str, saved: RunDescription, run: RunDescription, *, resume_anyway: bool = False) -> None:
    """Raise when a checkpoint must not continue this run: it is of another data set or other settings.

    Args:
        name: Of the checkpoint.
        saved: The run that wrote it.
        run: This run.
        resume_anyway: Accept other settings (with a warning that names them); the data set must fit always.

    Raises:
        CheckpointRefusedError: Naming every difference.
    """
    problems = []
    if saved.data_hash != run.data_hash:
        problems.append(
            f"another data set: its manifest has the hash {saved.data_hash or '(none)'}, "
            f"this run's {run.data_hash or '(none)'}"
        )
    changed = differences(saved.fixed, run.fixed)
    if changed and resume_anyway:
        logger.warning("resuming although settings differ: %s", "; ".join(changed))
    elif changed:
        problems += changed
    if problems:
        remedy = "set them back, or give the run another name=..."
        if saved.data_hash == run.data_hash:
            remedy += "; --resume-anyway continues with the settings of now"
        raise _refusal(name, [*problems, remedy])


def change_of_rate(saved: Mapping[str, Any], current: Mapping[str, Any], epoch: int) -> str:
    """What another length of the run does to the learning rate where it goes on; empty when it is the same.

    With a cosine the rate follows from the length of the whole run.

    Args:
        saved: Configuration of the run that wrote the checkpoint, as JSON.
        current: Of this run.
        epoch: The first one that is still to be trained.
    """
    training = current["training"]
    schedule = ScheduleConfig.model_validate(training["schedule"])
    lengths = [config["training"]["loop"]["epochs"] for config in (saved, current)]
    before, after = (
        learning_rate_at(schedule, training["optimizer"]["learning_rate"], epoch, length) for length in lengths
    )
    if math.isclose(before, after, rel_tol=0.01):
        return ""
    return (
        f"training.loop.epochs was {lengths[0]} and is {lengths[1]}: the learning rate goes on at {after:.2e}, where it"
        f" would have been {before:.2e}; the end will not be that of a run that had this length from the beginning"
    )


def refuse_other_optimizer(name: str, saved: OptimizerState, optimizer: torch.optim.Optimizer) -> None:
    """Raise when the moments of a checkpoint are of another optimiser, or of the same one made by another library.

    Args:
        name: Of the checkpoint.
        saved: Its optimiser.
        optimizer: This run's.

    Raises:
        CheckpointRefusedError: Naming both.
    """
    here = describe(optimizer)
    if (saved.kind, saved.backend) != (here["class"], here["backend"]):
        problem = f"another optimizer: {saved.kind} ({saved.backend}), here {here['class']} ({here['backend']})"
        raise _refusal(name, [problem])


def _refusal(name: str, problems: list[str]) -> CheckpointRefusedError:
    return CheckpointRefusedError(f"checkpoint {name} does not continue this run\n  " + "\n  ".join(problems))
