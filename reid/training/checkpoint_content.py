"""What a checkpoint's files hold: a run's state as safetensors and one `state.json`, written and read side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from reid.training.checkpoint_files import (
    PRODUCT,
    SCHEMA_VERSION,
    CheckpointDamagedError,
    digest_of,
    json_from_bytes,
    json_to_bytes,
    tensors_from_bytes,
    tensors_to_bytes,
)
from reid.training.optimizer_state import OptimizerState
from reid.training.randomness import RandomState
from reid.training.snapshot import CheckpointState, Position, RunDescription


def files_of(state: CheckpointState) -> dict[str, bytes]:
    """The files of a checkpoint by name, without the manifest."""
    files = {
        "model.safetensors": tensors_to_bytes(state.model),
        "optimizer.safetensors": tensors_to_bytes(state.optimizer.tensors),
        "random.safetensors": tensors_to_bytes(state.random.tensors),
    }
    if state.average is not None:
        files["ema.safetensors"] = tensors_to_bytes(state.average)
    files["state.json"] = json_to_bytes(
        {
            "schema": SCHEMA_VERSION,
            "product": PRODUCT,
            "position": asdict(state.position),
            "world_size": state.world_size,
            "learning_rates": list(state.learning_rates),
            "counters": dict(state.counters),
            "scaler": None if state.scaler is None else dict(state.scaler),
            "average_updates": state.average_updates,
            "random": dict(state.random.values),
            "optimizer": {
                "class": state.optimizer.kind,
                "backend": state.optimizer.backend,
                "values": {name: dict(values) for name, values in state.optimizer.values.items()},
                "group_steps": list(state.optimizer.group_steps),
            },
            "run": {
                "config": dict(state.run.config),
                "fixed": dict(state.run.fixed),
                "data_hash": state.run.data_hash,
            },
            "config_digest": digest_of(state.run.fixed),
        }
    )
    return files


def state_of(content: Mapping[str, bytes], name: str) -> CheckpointState:
    """The state that `files_of` made files of.

    Args:
        content: The files by name.
        name: What error messages call the checkpoint.

    Raises:
        CheckpointDamagedError: When a file is missing or not in its format.
    """
    state = json_from_bytes(_expected(content, "state.json", name), f"{name}/state.json")

    def tensors(file: str) -> dict[str, Tensor]:
        return tensors_from_bytes(_expected(content, file, name), f"{name}/{file}")

    try:
        optimizer = state["optimizer"]
        return CheckpointState(
            position=Position(**state["position"]),
            model=tensors("model.safetensors"),
            optimizer=OptimizerState(
                kind=optimizer["class"],
                backend=optimizer["backend"],
                tensors=tensors("optimizer.safetensors"),
                values=optimizer["values"],
                group_steps=tuple(optimizer["group_steps"]),
            ),
            random=RandomState(tensors=tensors("random.safetensors"), values=state["random"]),
            run=RunDescription(**state["run"]),
            average=tensors("ema.safetensors") if "ema.safetensors" in content else None,
            average_updates=state["average_updates"],
            scaler=state["scaler"],
            counters=state["counters"],
            learning_rates=tuple(state["learning_rates"]),
            world_size=state["world_size"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointDamagedError("format", f"{name}/state.json lacks or mistypes {error}") from error


def _expected(content: Mapping[str, bytes], file: str, name: str) -> bytes:
    if file not in content:
        raise CheckpointDamagedError("file_missing", f"{name} holds no {file}: {sorted(content)}")
    return content[file]
