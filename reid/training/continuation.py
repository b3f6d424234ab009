"""Whether a checkpoint may continue a run: what differs between the run that wrote it and this one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from reid.contracts import flatten
from reid.training.checkpoint import CheckpointRefusedError
from reid.training.optim import describe
from reid.training.snapshot import CheckpointState, RunDescription

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


def refuse_other_run(
    state: CheckpointState,
    run: RunDescription,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    resume_anyway: bool = False,
) -> None:
    """Raise when a checkpoint must not continue this run: another data set, other settings, another optimiser.

    Args:
        state: The checkpoint.
        run: This run.
        optimizer: This run's, to compare class and backend; None skips that.
        resume_anyway: Accept other settings (with a warning that names them); data set and optimiser must fit always.

    Raises:
        CheckpointRefusedError: Naming every difference.
    """
    problems = []
    if state.run.data_hash != run.data_hash:
        problems.append(
            f"another data set: its manifest has the hash {state.run.data_hash or '(none)'}, "
            f"this run's {run.data_hash or '(none)'}"
        )
    if optimizer is not None:
        here = describe(optimizer)
        if (state.optimizer.kind, state.optimizer.backend) != (here["class"], here["backend"]):
            problems.append(
                f"another optimizer: {state.optimizer.kind} ({state.optimizer.backend}), here {here['class']} "
                f"({here['backend']})"
            )
    changed = differences(state.run.fixed, run.fixed)
    if changed and resume_anyway:
        logger.warning("resuming although settings differ: %s", "; ".join(changed))
    elif changed:
        problems += changed
    if problems:
        raise CheckpointRefusedError(
            f"the checkpoint of step {state.position.step:,} does not continue this run\n  " + "\n  ".join(problems)
        )
