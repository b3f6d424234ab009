"""For the whole suite: a run of everything must not shrink unnoticed; what tests in several folders need."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

NUM_TESTS_FLOOR = 1600
"""Tests of the default suite at the least; raise it when the suite has grown."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    whole = not config.invocation_params.args or list(config.invocation_params.args) == ["-m", "not slow"]
    if whole and len(items) < NUM_TESTS_FLOOR:
        raise pytest.UsageError(f"{len(items)} tests were collected, expected at least {NUM_TESTS_FLOOR}")


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What a job does on SIGTERM ends with the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
