"""For the whole suite: a run of everything must not shrink unnoticed; what tests in several folders need."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

NUM_TESTS_FLOOR = 1600
"""Tests of the default suite at the least; raise it when the suite has grown."""


RAY_TESTS = Path(__file__).parent / "cluster"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # In several processes all tests with Ray run in one, which mostly waits; a file's fixtures are made once.
        of_ray = item.path.is_relative_to(RAY_TESTS)
        item.add_marker(pytest.mark.xdist_group("ray" if of_ray else str(item.path)))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    whole = set(config.args) == set(config.getini("testpaths")) and config.option.markexpr == "not slow"
    if not whole or reporter is None or config.option.collectonly:
        return  # a part of the suite, or one of several processes that share it
    if session.testscollected < NUM_TESTS_FLOOR:
        reporter.ensure_newline()
        reporter.section("the suite has shrunk", red=True)
        reporter.write_line(f"{session.testscollected} tests ran, expected at least {NUM_TESTS_FLOOR}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What a job does on SIGTERM ends with the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
