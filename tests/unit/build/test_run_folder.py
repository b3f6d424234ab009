"""Where a run's folder may lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from reid.build.run_folder import refuse_mixed_folders
from reid.config import load_experiment


def refuse(runs: Path | str, shards: Path | str) -> None:
    refuse_mixed_folders(load_experiment(None, ["name=a", f"runs={runs}", f"data.shards={shards}"]))


def test_a_run_in_its_data_set_and_a_data_set_in_its_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for runs in (tmp_path / "set", tmp_path / "set" / "runs", tmp_path / "link" / "runs"):
        with pytest.raises(ValueError, match=r"the run's folder .*/a and the data set .*/set lie in one another"):
            refuse(runs, tmp_path / "set")
    for shards in ("runs/a", "runs/a/shards"):
        with pytest.raises(ValueError, match=r"lie in one another: choose another runs="):
            refuse(tmp_path / "runs", tmp_path / shards)
    with pytest.raises(ValueError, match=r"s3://bucket/set/a"):
        refuse("s3://bucket/set?region=x", "s3://bucket/set?region=x")


def test_folders_beside_one_another_are_fine(tmp_path: Path) -> None:
    refuse(tmp_path / "runs", tmp_path / "set")
    refuse(tmp_path, tmp_path / "ab")
    refuse(tmp_path / "set-runs", tmp_path / "set")
    refuse(tmp_path / "runs", "http://127.0.0.1/set")
