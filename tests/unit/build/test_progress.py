"""Progress off a terminal: a line now and then, none for what is done at once."""

from __future__ import annotations

import logging

import pytest

from reid.build.progress import progress_bar, progress_bars


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
    times = iter([0.0, 40.0, 100.0, 131.0])
    with caplog.at_level(logging.INFO), progress_bars(lambda: next(times)) as begin:
        begin("images embedded")(10, 20)
        begin("queries ranked")(31, 62)
    assert caplog.messages == [
        "images embedded: 10 of 20, about 1 min left",
        "queries ranked: 31 of 62, about 1 min left",
    ]
