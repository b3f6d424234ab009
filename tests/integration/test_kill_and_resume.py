"""SIGKILL at random moments costs nothing that was acknowledged (campaigns without Ray)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.kill_campaign import campaign


def test_five_kills_lose_nothing_and_end_in_the_same_bits(tmp_path: Path) -> None:
    figures = campaign(tmp_path, kills=5, steps=200, corrupt_every=2)
    assert figures.kills == 5
    assert figures.corruptions == 2
    figures.check()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_kills_lose_nothing_and_end_in_the_same_bits(tmp_path: Path) -> None:
    figures = campaign(tmp_path, kills=50, steps=3000)
    assert figures.kills == 50
    assert figures.corruptions == 5
    figures.check()
