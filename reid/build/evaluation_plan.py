"""The plan of an evaluation, printed once before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reid.build.evaluation import evaluation_trials
from reid.build.keypoint_evaluation import evaluation_rows
from reid.build.run_plan import as_plan, describe_model
from reid.config import AnyExperiment, KeypointExperiment, ReidExperiment, retrievals_of
from reid.data.shard_set import ShardSet
from reid.evaluation.protocols import rows_of_trials
from reid.storage import Location


def describe_evaluation(
    experiments: Sequence[AnyExperiment],
    checkpoint: Location,
    shards: ShardSet,
    *,
    where: str,
    severities: Sequence[float] = (),
) -> str:
    """Plain text, a line a subject.

    Args:
        experiments: One for each protocol.
        checkpoint: What is evaluated.
        shards: The data set.
        where: Who does it, in words.
        severities: Shares that are covered of each query, one after the other; the clean ones come first.

    Raises:
        ValueError, DataError: The data set has no images for a protocol.
    """
    first, manifest = experiments[0], shards.manifest
    transform = first.data.transform
    retrievals = retrievals_of(experiments)
    subjects, num_images = _subjects(first, retrievals, shards, len(severities))
    if severities:
        covered = ", ".join(f"{100 * severity:g}" for severity in severities)
        subjects["occluded"] = f"{covered} % of each query, one after the other"
    lines = {
        "checkpoint": f"{checkpoint.name} of {first.name}: {describe_model(first, with_first_weights=False)}",
        "data": f"{manifest.name}, {manifest.num_bytes / 1e6:,.1f} MB, hash {manifest.hash[:12]}",
        **subjects,
        "images": f"{num_images:,} of {transform.width}x{transform.height}, {first.evaluation.precision}"
        + (", each and its mirror image" if retrievals and retrievals[0].evaluation.flip else ""),
        "on": where,
    }
    return as_plan("plan of the evaluation", lines)


def _subjects(
    first: AnyExperiment, retrievals: Sequence[ReidExperiment], shards: ShardSet, num_severities: int
) -> tuple[dict[str, str], int]:
    """What each protocol compares, and how many images are embedded for it."""
    if isinstance(first, KeypointExperiment):
        rows = evaluation_rows(first, shards)
        held_out = f", thresholds from {len(rows.held_out):,} images" if first.evaluation.fit_thresholds else ""
        return {"keypoints": f"{rows.protocol}: {len(rows.measured):,}{held_out}"}, len(rows.all)
    subjects, needed, occluded = {}, [], 0
    for experiment in retrievals:
        trials = evaluation_trials(experiment, shards)
        needed += [rows_of_trials(trials)]
        occluded += num_severities * len(np.unique(np.concatenate([trial.query_rows for trial in trials])))
        queries, entries = (
            np.mean([len(rows) for rows in some])
            for some in ([trial.query_rows for trial in trials], [trial.gallery_rows for trial in trials])
        )
        text = f"{queries:,.0f} queries, {entries:,.0f} gallery images"
        if len(trials) > 1:
            text += f" on average, {len(trials)} trials"
        rerank = experiment.evaluation.rerank
        subjects[experiment.evaluation.protocol] = text + (f"; {rerank.describe()}" if rerank is not None else "")
    if num_severities:  # each protocol by itself
        return subjects, sum(map(len, needed)) + occluded
    return subjects, len(np.unique(np.concatenate(needed)))
