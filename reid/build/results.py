"""Stored evaluations of any kind of run, back from plain data and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reid.config import AnyExperiment, KeypointExperiment
from reid.evaluation.keypoint_results import KeypointResult, keypoint_rows, planes_table, points_table
from reid.evaluation.results import RetrievalResult, plain_table, results_table

Result = RetrievalResult | KeypointResult


def read_result(experiment: AnyExperiment, stored: Mapping[str, Any]) -> Result:
    """The result that an evaluation of this run stored.

    Raises:
        ValueError: If it is of another format.
    """
    match experiment:
        case KeypointExperiment():
            return KeypointResult.from_json(stored)
        case _:
            return RetrievalResult.from_json(stored)


def print_results(results: Sequence[Result]) -> str:
    """Results of one kind as plain text; of a detector also the table of its keypoints and planes."""
    detectors = [result for result in results if isinstance(result, KeypointResult)]
    retrievals = [result for result in results if isinstance(result, RetrievalResult)]
    parts = [results_table(retrievals)] if retrievals else []
    if detectors:
        parts += [plain_table(keypoint_rows(detectors)), points_table(detectors[-1]), planes_table(detectors[-1])]
    return "\n\n".join(parts)
