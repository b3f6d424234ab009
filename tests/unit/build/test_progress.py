"""Progress off a terminal: a line now and then, none for what is done at once."""

from __future__ import annotations

import io
import logging
import time

import pytest

from reid.build.progress import progress_bar, progress_bars
from reid.progress import Progress, labelled, untold


def test_lines_in_the_log_every_half_minute(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 10.0, 31.0, 40.0, 62.0, 63.0])
    with caplog.at_level(logging.INFO), progress_bar("masks", lambda: next(times)) as draw:
        for done in (100, 310, 400, 3_100, 5_000):
            draw(done, 5_000)
    assert caplog.messages == [
        "masks: 310 of 5,000, about 8 min left",
        "masks: 3,100 of 5,000, about 1 min left",
    ]


def test_each_stage_has_lines_and_time_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 40.0, 100.0, 131.0, 132.0, 150.0, 151.0, 162.0])
    with caplog.at_level(logging.INFO), progress_bars(lambda: next(times)) as begin:
        begin("images embedded")(10, 20)
        for trial, done in enumerate((31, 62, 20), start=1):
            begin(f"queries ranked, trial {trial} of 3")(done, 62)
    # Stages that are done in less than half a minute each are told of together.
    assert caplog.messages == [
        "images embedded: 10 of 20, about 1 min left",
        "queries ranked, trial 1 of 3: 31 of 62, about 1 min left",
        "queries ranked, trial 3 of 3: 20 of 62, about 0 min left",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_bar_of_the_newest_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bars() as begin:
        for number in range(60):
            tell = begin(f"stage {number}")
            tell(number, 60)
        before = len(screen.getvalue())
        time.sleep(0.5)
    shown = screen.getvalue()[before:]
    assert "stage 59" in shown
    assert "59/60" in shown
    assert "stage 58" not in shown


def test_titles_say_what_stages_belong_to() -> None:
    seen: list[str] = []

    def stages(title: str) -> Progress:
        seen.append(title)
        return lambda done, total: None

    labelled(stages, "veri776", "", "trial 2 of 3")("queries ranked")
    labelled(stages, "")("images embedded")
    assert seen == ["queries ranked, veri776, trial 2 of 3", "images embedded"]
    assert labelled(untold, "veri776") is untold
