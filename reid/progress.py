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
