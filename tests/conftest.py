"""For the whole suite: a run of everything must not shrink unnoticed; what tests in several folders need."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

NUM_TESTS_FLOOR = 1700
"""Tests of the default suite at the least; raise it when the suite has grown."""


class _ByFile(LoadFileScheduling):  # type: ignore[misc]
    """Tests in several processes: each file in one, whose fixtures are made once; all with Ray, which wait, in one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "tests/cluster" if file.startswith("tests/cluster/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    return _ByFile(config, log)


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
