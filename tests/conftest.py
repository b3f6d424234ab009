"""For the whole suite: a run of everything must not shrink unnoticed."""

from __future__ import annotations

import pytest

NUM_TESTS_FLOOR = 1600
"""Tests of the default suite at the least; raise it when the suite has grown."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    whole = not config.invocation_params.args or list(config.invocation_params.args) == ["-m", "not slow"]
    if whole and len(items) < NUM_TESTS_FLOOR:
        raise pytest.UsageError(f"{len(items)} tests were collected, expected at least {NUM_TESTS_FLOOR}")
