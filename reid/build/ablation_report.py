"""Ablation tables with our figures, mean and deviation over seeds, beside the paper's: as Markdown and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from statistics import fmean, stdev

from reid.build.ablation import AblationRow, AblationTable
from reid.evaluation.results import RetrievalResult
from reid.storage import Location, write_bytes_atomic

FIGURES = (("mAP", "mAP"), ("CMC@1", "R1"), ("CMC@5", "R5"))
"""Of the papers' tables, by their names there and here."""


@dataclass
class TableResults:
    """A table and what its runs have given so far."""

    table: AblationTable
    seeds: tuple[int, ...]
    results: dict[tuple[int, int], RetrievalResult] = field(default_factory=dict)
    """By place of the row and seed."""

    def add(self, row: AblationRow, seed: int, result: RetrievalResult) -> None:
        """Takes in the result of a row's run with one seed."""
        self.results[self.table.rows.index(row), seed] = result

    def of_row(self, place: int) -> list[RetrievalResult]:
        """Results of the row's runs, in the order of the seeds."""
        return [self.results[place, seed] for seed in self.seeds if (place, seed) in self.results]


def table_text(filled: TableResults) -> str:
    """The table in the paper's layout as Markdown, aligned for reading as it is; percent, mean +- deviation."""
    table = filled.table
    figures = [name for name, _ in FIGURES]
    header = [*table.columns, "seeds", *figures, *(f"{name} (paper)" for name in figures)]
    rows = []
    for place, row in enumerate(table.rows):
        found = filled.of_row(place)
        ours = [_mean([100 * result.figures()[short] for result in found]) for _, short in FIGURES]
        papers = ["-"] * len(FIGURES) if row.paper is None else [f"{value:.1f}" for value in row.paper]
        rows.append([*row.cells, str(len(found)), *ours, *papers])
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    num_text = len(table.columns)

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if column < num_text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if column < num_text else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    protocols = sorted({result.protocol for result in filled.results.values()})
    notes = [
        *(
            f"ours: protocol {protocol}, seeds {', '.join(map(str, filled.seeds))}: mean +- standard deviation (sample)"
            for protocol in protocols
        ),
        "paper: on VeRi-776, one run",
        *table.notes,
        *dict.fromkeys(note for result in filled.results.values() for note in result.notes),
    ]
    lines = [line(header), line(rule), *(line(row) for row in rows)]
    return "\n".join([table.title, "", *lines, "", *(f"- {note}" for note in notes)])


def write_table(filled: TableResults, folder: Location, name: str) -> None:
    """Writes `<name>.md` and `<name>.json` into a folder, in place of older ones."""
    write_bytes_atomic(folder.child(f"{name}.md"), (table_text(filled) + "\n").encode())
    content = {
        "title": filled.table.title,
        "columns": list(filled.table.columns),
        "rows": [
            {
                "cells": list(row.cells),
                "variant": row.variant,
                "paper": row.paper,
                "results": {
                    str(seed): filled.results[place, seed].to_json()
                    for seed in filled.seeds
                    if (place, seed) in filled.results
                },
            }
            for place, row in enumerate(filled.table.rows)
        ],
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    write_bytes_atomic(folder.child(f"{name}.json"), text.encode())


def _mean(values: list[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{fmean(values):.1f} +- {stdev(values):.1f}"
