"""VERI-Wild in its raw layout, both list dialects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reid.data.veriwild import read_veriwild, survey_veriwild
from tests.unit.data.raw_layouts import counted, write_lines, write_veriwild


def kinds(root: Path) -> dict[str, int]:
    """Kind -> count of what a survey found."""
    return counted(survey_veriwild(root).findings)


def test_lists_decide_split_and_sizes(tmp_path: Path) -> None:
    records = read_veriwild(write_veriwild(tmp_path))

    keys = {split: [record.key for record in records if record.split == split] for split in ("train", "query")}
    assert keys == {
        "train": ["00001_000011", "00001_000012", "00002_000021", "00002_000022"],
        "query": ["00011_000111", "00012_000121", "00013_000131"],
    }
    for split in ("query", "gallery"):
        sizes = {record.vehicle_id: record.subsets for record in records if record.split == split}
        assert sizes == {"00011": ("small", "medium", "large"), "00012": ("medium", "large"), "00013": ("large",)}
    assert sum(record.split == "gallery" for record in records) == 6


def test_both_dialects_give_the_same_records_with_or_without_the_header(tmp_path: Path) -> None:
    expected = read_veriwild(write_veriwild(tmp_path / "a" / "VERI-Wild"))

    for number, (dialect, header) in enumerate([("old", False), ("new", True), ("new", False)]):
        root = write_veriwild(tmp_path / str(number) / "veriwild", dialect=dialect, header=header)
        actual = [replace(record, path=Path(record.path.name)) for record in read_veriwild(root.parent)]
        assert actual == [replace(record, path=Path(record.path.name)) for record in expected]
        assert kinds(root) == {}


def test_camera_time_and_attributes_come_from_the_table(tmp_path: Path) -> None:
    record = read_veriwild(write_veriwild(tmp_path))[1]

    assert (record.vehicle_id, record.camera_id, record.timestamp) == ("00001", "2", "2018-03-11 06:02:00")
    assert dict(record.attributes) == {"model": "大众", "type": "suv", "colour": "white"}


def test_the_newer_dialect_needs_no_table(tmp_path: Path) -> None:
    root = write_veriwild(tmp_path, dialect="new")
    (root / "train_test_split" / "vehicle_info.txt").unlink()

    assert [record.camera_id for record in read_veriwild(root)[:2]] == ["1", "2"]
    assert kinds(root) == {"no-info": 1}


def test_images_without_any_camera_are_kept_and_said(tmp_path: Path) -> None:
    root = write_veriwild(tmp_path)
    (root / "train_test_split" / "vehicle_info.txt").unlink()

    assert all(record.camera_id is None for record in read_veriwild(root))
    assert kinds(root)["no-camera"] == 13


def test_the_list_wins_where_the_table_names_another_camera(tmp_path: Path) -> None:
    root = write_veriwild(tmp_path, dialect="new")
    lists = root / "train_test_split"
    write_lines(lists / "train_list.txt", ["00001/000011.jpg 1 07", "00001/000012.jpg 1 02"])

    assert [record.camera_id for record in read_veriwild(root)[:2]] == ["7", "2"]
    assert kinds(root) == {"label-contradiction": 1}


def test_sizes_whose_lists_are_missing_do_not_exist_and_this_is_said(tmp_path: Path) -> None:
    root = write_veriwild(tmp_path)
    for name in ("test_5000.txt", "test_5000_query.txt", "test_10000.txt", "test_10000_query.txt"):
        (root / "train_test_split" / name).unlink()

    assert {record.subsets for record in read_veriwild(root) if record.split != "train"} == {("small",)}
    assert kinds(root) == {"absent-size": 2}


def test_half_a_size_is_refused(tmp_path: Path) -> None:
    root = write_veriwild(tmp_path)
    (root / "train_test_split" / "test_3000.txt").unlink()

    with pytest.raises(ValueError, match=r"list missing.*test_3000\.txt"):
        read_veriwild(root)


@pytest.mark.parametrize("broken", ["000011", "00001/000011.jpg 1", "car/1.jpg", "00001/000011.jpg one two"])
def test_lines_of_neither_dialect_are_refused(tmp_path: Path, broken: str) -> None:
    root = write_veriwild(tmp_path)
    write_lines(root / "train_test_split" / "train_list.txt", ["00001/000011", broken])

    with pytest.raises(ValueError, match=r"neither `vehicle/image` nor .*line 2"):
        read_veriwild(root)


def test_broken_lines_of_the_table_cost_only_their_image(tmp_path: Path) -> None:
    root = write_veriwild(tmp_path)
    write_lines(
        root / "train_test_split" / "vehicle_info.txt", ["id/image;Camera ID", "00001/000011;5", "what", "00001/000012"]
    )

    assert [record.camera_id for record in read_veriwild(root)[:2]] == ["5", None]
    assert kinds(root)["unparsed-line"] == 2


def test_queries_that_lie_in_the_gallery_too_are_said(tmp_path: Path) -> None:
    root = write_veriwild(tmp_path)
    write_lines(root / "train_test_split" / "test_3000.txt", ["00011/000111", "00011/000112"])

    assert kinds(root) == {"query-in-gallery": 1}


def test_listed_images_that_are_missing_are_refused(tmp_path: Path) -> None:
    root = write_veriwild(tmp_path)
    (root / "images" / "00013" / "000133.jpg").unlink()

    with pytest.raises(ValueError, match=r"gallery image that images/ lacks.*00013/000133"):
        read_veriwild(root)
