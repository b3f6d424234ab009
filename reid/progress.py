"""How long work says how far it has come, wherever it runs and whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the number of things done and of all things."""
Stages = Callable[[str], Progress]
"""Begins a stage of work, named by what is counted in it, such as "images embedded"."""


def untold(_: str) -> Progress:
    """Stages that nobody is told of."""
    return lambda done, total: None


def labelled(stages: Stages, *labels: str) -> Stages:
    """Stages whose titles also say what they belong to: "queries ranked, trial 3 of 10". Empty labels do not count."""
    labels = tuple(filter(None, labels))
    if stages is untold or not labels:
        return stages
    return lambda title: stages(", ".join((title, *labels)))
