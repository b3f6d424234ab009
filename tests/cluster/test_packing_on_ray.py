"""Packing on Ray: the same set as without it, and errors that arrive as they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.command_line import exit_code
from cluster.shard_tasks import run_on_ray
from jobs import make_shards
from reid.contracts import DataError
from reid.data.shard_set import open_shards
from reid.data.shards import pack_shards
from reid.data.staging import ShardResult
from reid.storage import Location, open_location
from tests.unit.data.raw_images import SMALL, draw_records, encoded_noise
from tests.unit.data.raw_layouts import write_veri


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_packing_on_ray_gives_the_same_set_as_packing_alone(tmp_path: Path) -> None:
    records = draw_records(tmp_path / "raw", {"train": [3] * 12, "query": [1] * 4, "gallery": [2] * 4}, masks=True)
    records[0].path.write_bytes(encoded_noise(0)[:-50])
    config = SMALL.model_copy(update={"min_train_shards": 8, "max_bad_fraction": 0.1})
    expected = pack_shards(records, tmp_path / "alone", config)
    done: list[int] = []
    actual = pack_shards(
        records, tmp_path / "ray", config, run_tasks=run_on_ray, progress=lambda number, total, _: done.append(number)
    )
    assert actual == expected
    assert actual.skipped == {"image_truncated": 1}
    assert done == list(range(1, 11))
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "ray" / path.name).read_bytes()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_too_many_bad_images_stop_packing_on_ray(tmp_path: Path) -> None:
    records = draw_records(tmp_path / "raw", {"train": [2] * 6})
    for record in records[:6]:
        record.path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"of 12 images are bad \(\d image_unreadable\)"):
        pack_shards(records, tmp_path / "set", SMALL, run_tasks=run_on_ray)
    assert not (tmp_path / "set").exists()


class DamagedShards:
    """Work that finds its data wrong."""

    def __call__(self, task: str, folder: Location) -> ShardResult:
        raise DataError(f"{task} is damaged: pack it again")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray", "own_signals")
def test_what_is_wrong_with_the_data_is_said_as_it_was_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        list(run_on_ray(["a.tar"], open_location(tmp_path), DamagedShards()))

    assert exit_code(work) == 3
    assert capsys.readouterr().err == "error: data: a.tar is damaged: pack it again\n"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_job_packs_a_relative_folder_on_a_cluster_that_works_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keypoints = write_veri(tmp_path / "data" / "VeRi")
    (tmp_path / "labels").mkdir()
    for name in ("keypoint_train.txt", "keypoint_test.txt"):
        (keypoints / name).rename(tmp_path / "labels" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_shards.py", "data/VeRi", "data/shards", "--keypoints", "labels"])
    assert make_shards.main() == 0, capsys.readouterr().err
    assert "skipped  none" in capsys.readouterr().out
    assert open_shards(tmp_path / "data" / "shards").index.has_keypoints.any()


def test_the_job_refuses_what_lies_in_a_copy_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    write_veri(copy / "VeRi")
    veri = str(write_veri(tmp_path / "VeRi"))
    monkeypatch.chdir(copy)
    for name, arguments in {
        "source=VeRi": ["VeRi", str(tmp_path / "target")],
        "target=shards": [veri, "shards"],
        "--keypoints=VeRi": [veri, str(tmp_path / "target"), "--keypoints", "VeRi"],
    }.items():
        monkeypatch.setattr(sys, "argv", ["make_shards.py", *arguments])
        assert make_shards.main() == 2
        assert f"{name} lies in the job's copy" in capsys.readouterr().err
