"""The plan of an evaluation, printed once before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reid.build.evaluation import evaluation_trials
from reid.build.keypoint_evaluation import evaluation_rows
from reid.build.run_plan import as_plan, describe_model
from reid.config import AnyExperiment, KeypointExperiment, ReidExperiment
from reid.data.shard_set import ShardSet
from reid.evaluation.protocols import rows_of_trials
from reid.storage import Location


def describe_evaluation(
    experiments: Sequence[AnyExperiment], checkpoint: Location, shards: ShardSet, *, where: str
) -> str:
    """Plain text, a line a subject.

    Args:
        experiments: One for each protocol.
        checkpoint: What is evaluated.
        shards: The data set.
        where: Who does it, in words.

    Raises:
        ValueError, DataError: The data set has no images for a protocol.
    """
    first, manifest = experiments[0], shards.manifest
    transform = first.data.transform
    retrievals = [each for each in experiments if not isinstance(each, KeypointExperiment)]
    subjects, num_images = _subjects(first, retrievals, shards)
    lines = {
        "checkpoint": f"{checkpoint.name} of {first.name}: {describe_model(first)}",
        "data": f"{manifest.name}, {manifest.num_bytes / 1e6:,.1f} MB, hash {manifest.hash[:12]}",
        **subjects,
        "images": f"{num_images:,} of {transform.width}x{transform.height}, {first.evaluation.precision}"
        + (", each and its mirror image" if retrievals and retrievals[0].evaluation.flip else ""),
        "on": where,
    }
    return as_plan("plan of the evaluation", lines)


def _subjects(
    first: AnyExperiment, retrievals: Sequence[ReidExperiment], shards: ShardSet
) -> tuple[dict[str, str], int]:
    """What each protocol compares, and how many images that takes."""
    if isinstance(first, KeypointExperiment):
        rows = evaluation_rows(first, shards)
        held_out = f", thresholds from {len(rows.held_out):,} images" if first.evaluation.fit_thresholds else ""
        return {"keypoints": f"{rows.protocol}: {len(rows.measured):,}{held_out}"}, len(rows.all)
    subjects, needed = {}, []
    for experiment in retrievals:
        trials = evaluation_trials(experiment, shards)
        needed += [rows_of_trials(trials)]
        queries, entries = (
            np.mean([len(rows) for rows in some])
            for some in ([trial.query_rows for trial in trials], [trial.gallery_rows for trial in trials])
        )
        text = f"{queries:,.0f} queries, {entries:,.0f} gallery images"
        if len(trials) > 1:
            text += f" on average, {len(trials)} trials"
        rerank = experiment.evaluation.rerank
        subjects[experiment.evaluation.protocol] = text + (f"; {rerank.describe()}" if rerank is not None else "")
    return subjects, len(np.unique(np.concatenate(needed)))
