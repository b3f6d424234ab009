"""Where a run keeps what: one folder, the same for training, evaluation and the report.

<runs>/<name>/
  config.yaml                      the resolved configuration
  checkpoints/step-00000225/       reid.training.checkpoint
  metrics/<writer>.jsonl           a row every few steps, one an epoch, one an evaluation, as they are written
  metrics.jsonl                    the same, merged
  evaluations/step-00000225.json   results of evaluation workers, or why there are none
  evaluations-other/               results with other settings than the run's (ablation tables)
  tensorboard/                     events
  report/                          index.html, report.json
  ray/                             Ray's own bookkeeping; nothing in it is needed to resume
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

from reid.config import AnyExperiment
from reid.settings_file import to_yaml
from reid.storage import Location, delete_tree, exists, list_names, open_location, read_bytes, write_bytes_atomic


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, local or on an object store."""

    location: Location

    @property
    def checkpoints(self) -> Location:
        """Folder of checkpoints."""
        return self.location.child("checkpoints")

    @property
    def evaluations(self) -> Location:
        """Folder of evaluation results."""
        return self.location.child("evaluations")

    @property
    def report(self) -> Location:
        """Folder of the report."""
        return self.location.child("report")

    def write_config(self, experiment: AnyExperiment) -> None:
        """Stores the resolved configuration."""
        write_bytes_atomic(self.location.child("config.yaml"), to_yaml(experiment).encode())

    def clear_unfinished_ray_state(self) -> None:
        """Removes Ray's bookkeeping of an earlier start: the newest verified checkpoint decides, not Ray's snapshot."""
        if exists(self.location.child("ray")):
            delete_tree(self.location.child("ray"))

    def evaluation(self, checkpoint: str) -> dict[str, Any] | None:
        """The stored evaluation of a checkpoint, `{"error": ...}` when it failed, None when there is none."""
        location = self.evaluations.child(f"{checkpoint}.json")
        if not exists(location):
            return None
        stored: dict[str, Any] = json.loads(read_bytes(location))
        return stored

    def write_evaluation(self, checkpoint: str, result: dict[str, Any]) -> None:
        """Stores the evaluation of a checkpoint."""
        text = json.dumps(result, indent=1, allow_nan=False)
        write_bytes_atomic(self.evaluations.child(f"{checkpoint}.json"), text.encode())

    def evaluation_with(self, checkpoint: str, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The stored evaluation of a checkpoint with this `evaluation` section; None when there is none.

        A run's own evaluations have the settings of the run; others lie beside them, in `evaluations-other`.
        """
        own = self.evaluation(checkpoint)
        if own is not None and "error" not in own and own.get("settings") == settings:
            return own
        location = self._other_evaluation(checkpoint, settings)
        if not exists(location):
            return None
        stored: dict[str, Any] = json.loads(read_bytes(location))
        return stored

    def write_evaluation_with(self, checkpoint: str, settings: dict[str, Any], result: dict[str, Any]) -> None:
        """Stores an evaluation of a checkpoint with settings that are not the run's."""
        text = json.dumps(result, indent=1, allow_nan=False)
        write_bytes_atomic(self._other_evaluation(checkpoint, settings), text.encode())

    def _other_evaluation(self, checkpoint: str, settings: dict[str, Any]) -> Location:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.location.child("evaluations-other").child(f"{checkpoint}-{digest[:16]}.json")

    def evaluated(self, settings: dict[str, Any] | None = None) -> set[str]:
        """Names of checkpoints with a stored evaluation that did not fail.

        Args:
            settings: Only evaluations made with this `evaluation` section; None: any.
        """
        if not exists(self.evaluations):
            return set()
        names = [name.removesuffix(".json") for name in list_names(self.evaluations) if name.endswith(".json")]
        stored = {name: self.evaluation(name) for name in names}
        return {
            name
            for name, data in stored.items()
            if data is not None and "error" not in data and settings in (None, data.get("settings"))
        }


def open_run(experiment: AnyExperiment) -> RunFolder:
    """The run folder of an experiment (it need not exist yet)."""
    return RunFolder(open_location(experiment.runs).child(experiment.name))


def refuse_mixed_folders(experiment: AnyExperiment) -> None:
    """Raise when the run's folder lies in its data set's or the data set's in the run's: deleting one would take both.

    Raises:
        ValueError: naming both.
    """
    run, data = open_run(experiment).location, open_location(experiment.data.shards)
    if _holds(data, run) or _holds(run, data):
        raise ValueError(
            f"the run's folder {run.uri} and the data set {data.uri} lie in one another: choose another runs=... or"
            " name=..."
        )


def _holds(folder: Location, other: Location) -> bool:
    """Whether `other` is the folder or inside it; links of local paths are followed."""

    def whole(place: Location) -> str:
        return os.path.realpath(place.path) if place.is_local else f"{place.uri.partition(':')[0]}:{place.path}"

    return f"{whole(other)}/".startswith(f"{whole(folder)}/")
