"""The result of an evaluation: figures with everything needed to know what they are figures of, and their table.

The table follows the ReID convention: mAP R1 R5 R10 mINP in percent with one decimal, base and re-ranked side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from rich.table import Table

from reid.evaluation.metrics import RetrievalMetrics

FORMAT_VERSION: Final = 1
FIGURES: Final = ("mAP", "R1", "R5", "R10", "mINP")
RERANKED: Final = "+RR"
"""What the names of figures after re-ranking end with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalResult:
    """Figures of one checkpoint under one protocol; fractions 0..1, printed as percent."""

    protocol: str
    metrics: RetrievalMetrics
    """Mean over the trials."""
    checkpoint_hash: str
    manifest_hash: str
    """Of the data set."""
    name: str = ""
    """What the row of a table says, such as the run and the epoch."""
    post_processing: str = "none"
    """What was done to distances after the network, such as "re-ranking k1=80 k2=15 lambda=0.2"."""
    notes: tuple[str, ...] = ()
    """Such as "camera unknown: scored without junk removal"."""
    trials: tuple[RetrievalMetrics, ...] = ()
    """Figures of each trial when there are several."""
    trial_names: tuple[str, ...] = ()
    drawn_galleries: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Index rows of each randomly drawn gallery by trial (vehicleid)."""
    seconds: float = 0.0
    """Wall-clock time of extraction and ranking."""
    reranked: RetrievalResult | None = None
    """The same queries after re-ranking; part of the base result, so that neither is ever shown for the other."""

    def figures(self) -> dict[str, float]:
        """The headline figures by their short names, fractions 0..1; re-ranked ones are called `mAP+RR` and so on.

        A query count and the trapezoid mAP are no headline figures: see `metrics`.
        """
        after = {} if self.reranked is None else _figures(self.reranked.metrics)
        return _figures(self.metrics) | {f"{name}{RERANKED}": value for name, value in after.items()}

    def headline(self) -> float:
        """The figure by which checkpoints are compared."""
        return self.metrics.mAP

    def deviations(self) -> dict[str, float]:
        """Standard deviation (of the population of trials) of each figure; empty with a single trial."""
        if len(self.trials) < 2:
            return {}
        values = [_figures(trial) for trial in self.trials]
        return {name: float(np.std([trial[name] for trial in values])) for name in values[0]}

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, ready for `json.dumps`."""
        data = asdict(self)
        data["format"] = FORMAT_VERSION
        data["figures"] = self.figures()
        data["deviations"] = self.deviations()
        data["metrics"] = _metrics_to_json(self.metrics)
        data["reranked"] = None if self.reranked is None else self.reranked.to_json()
        data["trials"] = [_metrics_to_json(trial) for trial in self.trials]
        for name in ("notes", "trial_names"):
            data[name] = list(data[name])
        data["drawn_galleries"] = {name: list(rows) for name, rows in self.drawn_galleries.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RetrievalResult:
        """What `to_json` gave.

        Raises:
            ValueError: If it is of another format or lacks a field.
        """
        version = data.get("format")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"expected a stored evaluation of format {FORMAT_VERSION}, got {version!r}; evaluate again"
            )
        try:
            return cls(
                protocol=data["protocol"],
                metrics=_metrics_from_json(data["metrics"]),
                checkpoint_hash=data["checkpoint_hash"],
                manifest_hash=data["manifest_hash"],
                name=data["name"],
                post_processing=data["post_processing"],
                notes=tuple(data["notes"]),
                trials=tuple(_metrics_from_json(trial) for trial in data["trials"]),
                trial_names=tuple(data["trial_names"]),
                drawn_galleries={name: tuple(rows) for name, rows in data["drawn_galleries"].items()},
                seconds=data["seconds"],
                reranked=cls.from_json(data["reranked"]) if data.get("reranked") else None,
            )
        except KeyError as error:
            raise ValueError(
                f"expected the field {error} in a stored evaluation, it is missing; evaluate again"
            ) from None


def _figures(metrics: RetrievalMetrics) -> dict[str, float]:
    return {"mAP": metrics.mAP, **{f"R{k}": value for k, value in metrics.cmc.items()}, "mINP": metrics.mINP}


def _metrics_to_json(metrics: RetrievalMetrics) -> dict[str, Any]:
    return {**asdict(metrics), "cmc": {str(k): value for k, value in metrics.cmc.items()}}


def _metrics_from_json(data: Mapping[str, Any]) -> RetrievalMetrics:
    return RetrievalMetrics(**{**data, "cmc": {int(k): value for k, value in data["cmc"].items()}})


@dataclass(frozen=True, slots=True)
class ResultRows:
    """The text of a table, ready for any way of printing it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def result_rows(results: Sequence[RetrievalResult]) -> ResultRows:
    """One row per name, protocol and checkpoint; re-ranked figures in columns of their own beside the base.

    Raises:
        ValueError: If two results claim the same cells.
    """
    results = [each for result in results for each in (result, result.reranked) if each is not None]
    grouped: dict[tuple[str, str, str], dict[str, RetrievalResult]] = {}
    for result in results:
        cells = grouped.setdefault((result.name, result.protocol, result.checkpoint_hash), {})
        if _mark(result) in cells:
            raise ValueError(
                f"expected one result per row, and one after re-ranking, got two of {result.name!r} {result.protocol!r}"
            )
        cells[_mark(result)] = result
    marks = [mark for mark in ("", RERANKED) if any(mark in cells for cells in grouped.values())]
    named = any(result.name for result in results)
    header = (*(("name",) if named else ()), "protocol", "queries")
    for mark in marks:
        header += tuple(f"{figure}{mark}" for figure in FIGURES)
    rows = []
    for (name, protocol, _), cells in grouped.items():
        first = next(iter(cells.values()))
        row = [*([name] if named else []), protocol, _queries(first)]
        for mark in marks:
            row += _percents(cells.get(mark))
        rows.append(tuple(row))
    post = _post_processing([result for result in results if _mark(result)])
    notes = _notes(results)
    trapezoid = dict.fromkeys(_trapezoid(result) for result in results if result.metrics.trapezoid_mAP is not None)
    return ResultRows(header, tuple(rows), (*post, *notes, *trapezoid))


def _mark(result: RetrievalResult) -> str:
    return "" if result.post_processing == "none" else RERANKED


def _post_processing(results: Sequence[RetrievalResult]) -> list[str]:
    """What was done to the re-ranked figures; where it is not the same for all, by protocol, or by name too."""
    protocols: dict[str, dict[str, None]] = {}
    for result in results:
        protocols.setdefault(result.post_processing, {})[_plain_protocol(result)] = None
    if len(protocols) < 2:
        return [f"{RERANKED}: {kind}" for kind in protocols]
    if sum(map(len, protocols.values())) == len({_plain_protocol(result) for result in results}):
        return [f"{', '.join(names)}: {RERANKED}: {kind}" for kind, names in protocols.items()]
    return list(
        dict.fromkeys(
            f"{result.name} {_plain_protocol(result)}".strip() + f": {RERANKED}: {result.post_processing}"
            for result in results
        )
    )


def _plain_protocol(result: RetrievalResult) -> str:
    """The protocol without what is said about occluded queries."""
    return result.protocol.partition(",")[0]


def _trapezoid(result: RetrievalResult) -> str:
    value = result.metrics.trapezoid_mAP
    assert value is not None
    return f"{result.protocol}: official trapezoid mAP{_mark(result)} {100 * value:.1f}"


def _notes(results: Sequence[RetrievalResult]) -> tuple[str, ...]:
    """Each note once, with its protocol, or with `all` where each of several protocols has it."""
    protocols: dict[str, set[str]] = {}
    for result in results:
        for note in result.notes:
            protocols.setdefault(note, set()).add(result.protocol)
    num_protocols = len({result.protocol for result in results})
    notes = (
        f"{'all' if 1 < num_protocols == len(protocols[note]) else result.protocol}: {note}"
        for result in results
        for note in result.notes
    )
    return tuple(dict.fromkeys(notes))


def results_table(results: Sequence[RetrievalResult]) -> str:
    """The results as plain text; percent, mean +- standard deviation where there are several trials."""
    return plain_table(result_rows(results))


def plain_table(table: ResultRows) -> str:
    """A table as plain text, its notes below."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    num_left = len(table.header) - len(_number_columns(table))

    def line(cells: tuple[str, ...]) -> str:
        padded = [
            cell.ljust(width) if column < num_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join(
        [line(table.header), rule, *(line(row) for row in table.rows), *(f"note: {n}" for n in table.notes)]
    )


def results_markdown(results: Sequence[RetrievalResult]) -> str:
    """The results as a Markdown table."""
    table = result_rows(results)
    num_left = len(table.header) - len(_number_columns(table))
    marks = ["---" if column < num_left else "---:" for column in range(len(table.header))]
    lines = [f"| {' | '.join(cells)} |" for cells in (table.header, tuple(marks), *table.rows)]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def results_rich(results: Sequence[RetrievalResult]) -> Table:
    """The results as a rich table for a terminal."""
    text = result_rows(results)
    table = Table(caption="\n".join(text.notes) or None)
    numbers = _number_columns(text)
    for column in text.header:
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    for row in text.rows:
        table.add_row(*row)
    return table


def _number_columns(table: ResultRows) -> tuple[str, ...]:
    return tuple(column for column in table.header if column not in {"name", "protocol"})


def _queries(result: RetrievalResult) -> str:
    metrics = result.metrics
    if metrics.num_valid_queries == metrics.num_queries:
        return f"{metrics.num_queries:,}"
    return f"{metrics.num_valid_queries:,} of {metrics.num_queries:,}"


def _percents(result: RetrievalResult | None) -> list[str]:
    if result is None:
        return ["-"] * len(FIGURES)
    figures, deviations = result.figures(), result.deviations()
    return [
        f"{100 * figures[name]:.1f}" + (f" +- {100 * deviations[name]:.1f}" if name in deviations else "")
        if name in figures
        else "-"
        for name in FIGURES
    ]
