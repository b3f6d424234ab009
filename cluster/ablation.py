"""Runs the variants of ablation tables one after the other, each with several seeds, and fills the tables.

What is finished is not repeated, what was interrupted continues at its newest checkpoint: the run folders say how far
each is. Tables are written after every run, so that a half-finished one can be looked at.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.evaluation import evaluate_checkpoint, evaluate_occluded
from cluster.pixel_ensemble import train_pixel_ensemble
from cluster.resources import absolute_address, check_evaluation_resources, ray_connection
from cluster.trainer import Resume, train, with_absolute_addresses
from reid.build.ablation import (
    BASELINE,
    OCCLUSION_SEED,
    PIXEL_SPACE,
    STRIPES,
    AblationBase,
    AblationRow,
    AblationTable,
    evaluated_as,
    variant_of,
)
from reid.build.ablation_report import TableResults, write_table
from reid.build.data import check_train_data, open_data
from reid.build.evaluation import evaluation_trials
from reid.build.results import read_result
from reid.build.run_folder import open_run
from reid.build.training import finished_checkpoint
from reid.config import Experiment, ReidExperiment, digest, with_overrides
from reid.contracts import DataError
from reid.data.additions import BOX_MAKERS
from reid.data.occluded_queries import occlusion_of, refuse_clean_parts
from reid.data.occlusion import OcclusionConfig
from reid.data.shard_set import ShardSet, open_shards
from reid.evaluation.results import RetrievalResult
from reid.storage import open_location

logger = logging.getLogger(__name__)


def run_tables(
    base: AblationBase,
    tables: Mapping[str, AblationTable],
    seeds: Sequence[int],
    occluded_parts: str | None = None,
) -> dict[str, TableResults]:
    """Trains and evaluates whatever the tables still lack, seed after seed, and writes each table as it fills.

    Args:
        base: What all variants have in common; tables go to `<runs>/<name>-ablation/`.
        tables: By name.
        seeds: Of the runs of each variant.
        occluded_parts: The data set with occluded queries and the parts of these, for rows that need it; None: such
            rows stay empty.

    Returns:
        The results of each table.

    Raises:
        ValueError: A run of that name was made with other settings or data.
        DataError: The data set lacks what a variant needs; nothing was trained.
        TrainingFailed: A run failed; the same call continues there.
    """
    base, occluded_parts = _checked(base, tables, seeds, occluded_parts)
    with ray_connection():
        return _fill(base, tables, seeds, occluded_parts)


def _checked(
    base: AblationBase, tables: Mapping[str, AblationTable], seeds: Sequence[int], occluded_parts: str | None
) -> tuple[AblationBase, str | None]:
    """The base and the set with occluded queries under absolute addresses, after all that they are refused for."""
    base = with_absolute_addresses(base)
    if occluded_parts is not None:
        occluded_parts = absolute_address("--occluded-parts", occluded_parts)
    _check_variants(base, tables, seeds)
    _check_data(base, tables, seeds, occluded_parts)
    return base, occluded_parts


def _check_variants(base: AblationBase, tables: Mapping[str, AblationTable], seeds: Sequence[int]) -> None:
    """Refuse before anything is trained what a variant or a row would refuse hours later, and rows that are alike."""
    found: dict[str, str] = {}
    for variant, wanted in _by_variant(tables).items():
        for _, row in wanted:
            evaluated_as(variant_of(base, variant, max(seeds)), row)
        other = found.setdefault(digest(variant_of(base, variant, max(seeds))), variant)
        if other != variant and PIXEL_SPACE not in (variant, other):
            raise ValueError(f"with this configuration the variants {other!r} and {variant!r} are the same run")


def _check_data(
    base: AblationBase, tables: Mapping[str, AblationTable], seeds: Sequence[int], occluded_parts: str | None
) -> None:
    """Refuse before anything is trained what the data set lacks for a variant or for the evaluation of a row.

    Raises:
        DataError: Naming the variant, such as one with planes where no image has keypoints.
    """
    rows = [row for table in tables.values() for row in table.rows if row.needs_occluded_parts]
    if occluded_parts is not None:
        if not rows:
            raise ValueError(f"--occluded-parts: no row of table {', '.join(tables)} needs it; remove it")
        with open_shards(occluded_parts) as shards:
            for row in rows:
                _check_occluded_parts(row, shards)
    with open_data(base) as shards:
        _refuse_stripes_twice(tables, shards)
        for variant, wanted in _by_variant(tables).items():
            experiment = variant_of(base, variant, max(seeds))
            try:
                check_train_data(experiment, shards)
                for _, row in wanted:
                    evaluation_trials(evaluated_as(experiment, row), shards)
            except ValueError as error:
                tables_with_it = ", ".join(dict.fromkeys(name for name, _ in wanted))
                raise DataError(f"variant {variant!r} of table {tables_with_it}: {error}") from error


def _refuse_stripes_twice(tables: Mapping[str, AblationTable], shards: ShardSet) -> None:
    """DataError where a row with uniform stripes in place of PANet's boxes would be one with PANet's boxes again."""
    makers = [addition.name for addition in shards.manifest.additions if addition.name in BOX_MAKERS]
    names = [name for name, table in tables.items() if any(row.variant == STRIPES for row in table.rows)]
    if names and makers[-1:] == ["stripes"]:
        raise DataError(
            f"table {', '.join(names)} compares uniform stripes with PANet's boxes, but the boxes of {shards.uri} are"
            " uniform stripes themselves: locate parts first (jobs/train_panet.py, then jobs/add_masks.py --panet)"
        )


def _check_occluded_parts(row: AblationRow, shards: ShardSet) -> None:
    wanted = OcclusionConfig(severity=row.occluded, seed=OCCLUSION_SEED)
    if occlusion_of(shards.manifest) != wanted:
        raise DataError(
            f"--occluded-parts {shards.uri}: expected queries of severity {wanted.severity:g} and seed {wanted.seed}"
            " (jobs/make_occluded.py makes them)"
        )
    refuse_clean_parts(shards)


def _fill(
    base: AblationBase, tables: Mapping[str, AblationTable], seeds: Sequence[int], occluded_parts: str | None
) -> dict[str, TableResults]:
    folder = open_location(base.runs).child(f"{base.name}-ablation")
    results = {name: TableResults(table=table, seeds=tuple(seeds)) for name, table in tables.items()}
    work = [(seed, variant, wanted) for seed in seeds for variant, wanted in _by_variant(tables).items()]
    began, trained = time.monotonic(), 0
    for number, (seed, variant, wanted) in enumerate(work, 1):
        experiment = variant_of(base, variant, seed)
        done = variant != PIXEL_SPACE and finished_checkpoint(experiment) is not None
        logger.info("run %d of %d: %s%s", number, len(work), experiment.name, " is done already" if done else "")
        trained += not done
        for name, row in wanted:
            if occluded_parts is not None or not row.needs_occluded_parts:
                results[name].add(row, seed, _result_of_row(base, row, seed, occluded_parts))
        for name in dict.fromkeys(name for name, _ in wanted):
            write_table(results[name], folder, name)
        if trained and number < len(work):
            minutes = (time.monotonic() - began) / 60
            logger.info("%d trained in %.0f min; %d runs to look at", trained, minutes, len(work) - number)
    logger.info("tables: %s", folder.uri)
    return results


def plan_of_tables(
    base: AblationBase,
    tables: Mapping[str, AblationTable],
    seeds: Sequence[int],
    occluded_parts: str | None = None,
) -> list[str]:
    """A line for each run that the tables need: its name and whether it is done.

    Raises:
        ValueError: As `run_tables`.
    """
    base, _ = _checked(base, tables, seeds, occluded_parts)
    lines = []
    for seed in seeds:
        for variant, wanted in _by_variant(tables).items():
            experiment = variant_of(base, variant, seed)
            done = finished_checkpoint(experiment) is not None if variant != PIXEL_SPACE else None
            used = ", ".join(dict.fromkeys(name for name, _ in wanted))
            state = {None: "an ensemble of five", True: "done", False: "to train"}[done]
            lines.append(f"{experiment.name}  {state}  for table {used}")
    return lines


def _result_of_row(base: AblationBase, row: AblationRow, seed: int, occluded_parts: str | None) -> RetrievalResult:
    experiment = variant_of(base, row.variant, seed)
    if row.variant != PIXEL_SPACE:
        # Trained with the evaluation of its first row, which then is there already.
        return result_of(evaluated_as(experiment, row), row.occluded, occluded_parts)
    baseline = variant_of(base, BASELINE, seed)
    result_of(baseline)  # trained, where it is not
    assert isinstance(experiment, Experiment), "the ensemble is made of plain baselines"
    return train_pixel_ensemble(experiment, global_run=baseline.name)


def result_of(experiment: ReidExperiment, occluded: float = 0.0, occluded_parts: str | None = None) -> RetrievalResult:
    """The figures of a run's last checkpoint under the experiment's evaluation; trained and evaluated where missing.

    Args:
        experiment: The run.
        occluded: Share of each query under a colour patch; 0: clean queries.
        occluded_parts: The data set to evaluate on where queries are occluded and retrieval takes parts.

    Raises:
        ValueError: A run of that name was made with other settings or data.
        TrainingFailed: The run failed.
    """
    name = finished_checkpoint(experiment)
    if name is None:
        train(experiment, Resume.AUTO)
        name = finished_checkpoint(experiment)
        assert name is not None, "training ends with a checkpoint"
    folder = open_run(experiment)
    checkpoint = folder.checkpoints.child(name).uri
    about, evaluate = _evaluation_of(experiment, checkpoint, occluded, occluded_parts)
    settings = {**experiment.evaluation.model_dump(mode="json"), **about}
    stored = folder.evaluation_with(name, settings)
    if stored is None:
        check_evaluation_resources(experiment.cluster)
        stored = evaluate()
        folder.write_evaluation_with(name, settings, stored)
    result = read_result(experiment, stored)
    assert isinstance(result, RetrievalResult)
    return result


def _evaluation_of(
    experiment: ReidExperiment, checkpoint: str, occluded: float, occluded_parts: str | None
) -> tuple[dict[str, Any], Callable[[], dict[str, Any]]]:
    """What sets this evaluation apart from that of clean queries, and the work itself; see `result_of`."""
    if not occluded:
        return {}, lambda: evaluate_checkpoint(experiment, checkpoint).to_json()
    if not experiment.evaluation.partial_tasks:

        def evaluate() -> dict[str, Any]:
            results = evaluate_occluded(experiment, checkpoint, [occluded], OCCLUSION_SEED)
            return results[-1].to_json()  # after that of clean queries

        return {"occluded": {"severity": occluded, "seed": OCCLUSION_SEED}}, evaluate
    assert occluded_parts is not None, "rows without their data set are left out"
    with open_shards(occluded_parts) as shards:
        data = {"data": shards.manifest.hash}
    there = with_overrides(experiment, [f"data.shards={occluded_parts}"])
    return {"occluded": data}, lambda: evaluate_checkpoint(there, checkpoint).to_json()


def _by_variant(tables: Mapping[str, AblationTable]) -> dict[str, list[tuple[str, AblationRow]]]:
    """Variants in the order in which they first appear, each with the rows of the tables that need it."""
    found: dict[str, list[tuple[str, AblationRow]]] = {}
    for name, table in tables.items():
        for row in table.rows:
            found.setdefault(row.variant, []).append((name, row))
    return found
