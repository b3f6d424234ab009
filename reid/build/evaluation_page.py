"""The page of an evaluation on its own: figures of each protocol, and queries worth looking at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reid.build.evaluation import Evaluation
from reid.build.keypoint_report import keypoint_sections
from reid.build.report import rank_list_sections
from reid.data.shard_set import ShardSet
from reid.evaluation.keypoint_results import KeypointResult
from reid.evaluation.report import Report, Section, render_report


def write_evaluation_page(
    path: Path, evaluations: Sequence[Evaluation], shards: ShardSet, *, run: str, plan: str
) -> None:
    """Writes one HTML file that needs nothing else.

    Args:
        path: Where to.
        evaluations: Of one checkpoint on one data set, a protocol each.
        shards: The data set, for pictures.
        run: Name of the run that trained it.
        plan: The plan that was printed.
    """
    results = [evaluation.result for evaluation in evaluations]
    sections: list[Section] = []
    for evaluation in evaluations:
        result = evaluation.result
        if isinstance(result, KeypointResult):
            sections += keypoint_sections(shards, result, evaluation.examples)
            continue
        for section in rank_list_sections(evaluation.examples, shards):
            prefix = f"{result.protocol}: " if len(evaluations) > 1 else ""
            sections.append(replace(section, title=prefix + section.title))
    page = Report(
        title=f"{results[0].name} of {run}",
        subtitle=f"{shards.manifest.name}, protocol {results[-1].protocol}"
        + (f" (others: {', '.join(result.protocol for result in results[:-1])})" if len(results) > 1 else ""),
        results=results,
        sections=[*sections, Section(title="Plan of the evaluation", text=plan, folded=True)],
    )
    path.write_text(render_report(page), encoding="utf-8")
