from __future__ import annotations

import os
import pty
import sys

import pytest

from reid.build.progress import progress_bar


def everything_drawn(reader: int) -> str:
    """What is left to read at the other end of a pseudo-terminal that was closed."""
    parts = []
    try:
        while part := os.read(reader, 65536):
            parts.append(part)
    except OSError:  # how Linux says that the terminal is closed
        pass
    os.close(reader)
    return b"".join(parts).decode()


def test_off_a_terminal_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("packing shards") as show:
        show(1, 3)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_title_and_counts_are_drawn_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar("packing shards") as show:
            show(1, 3)
    text = everything_drawn(reader)
    assert "packing shards" in text
    assert "1/3" in text
    assert capsys.readouterr().out == ""
