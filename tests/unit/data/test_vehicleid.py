"""VehicleID in its raw layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from reid.data.vehicleid import read_vehicleid, survey_vehicleid
from tests.unit.data.raw_layouts import write_lines, write_vehicleid


def test_lists_decide_split_vehicle_and_sizes(tmp_path: Path) -> None:
    records = read_vehicleid(write_vehicleid(tmp_path))

    train = [(record.key, record.vehicle_id) for record in records if record.split == "train"]
    assert train == [("000010", "1"), ("000011", "1"), ("000020", "2"), ("000021", "2")]
    sizes = {record.vehicle_id: record.subsets for record in records if record.split == "test"}
    assert sizes == {"11": ("small", "medium", "large"), "12": ("medium", "large"), "13": ("large",)}
    assert {record.split for record in records} == {"train", "test"}
    assert all(record.camera_id is None and record.path.is_file() for record in records)


@pytest.mark.parametrize("name", ["VehicleID_V1.0", "VehicleID", "vehicleid", "vehicle_id"])
def test_the_parent_of_any_usual_root_is_enough(tmp_path: Path, name: str) -> None:
    write_vehicleid(tmp_path / name)

    assert len(read_vehicleid(tmp_path)) == len(read_vehicleid(tmp_path / "VehicleID-V1")) == 10


def test_sizes_whose_lists_are_missing_do_not_exist_and_this_is_said(tmp_path: Path) -> None:
    root = write_vehicleid(tmp_path, sizes=[800])

    survey = survey_vehicleid(root)

    assert {record.subsets for record in survey.records if record.split == "test"} == {("small",)}
    messages = [str(finding) for finding in survey.findings]
    assert len(messages) == 2
    assert any("'medium'" in message for message in messages)
    assert any("'large'" in message for message in messages)


def test_a_data_set_without_test_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"without any test list \(expected test_list_800\.txt"):
        read_vehicleid(write_vehicleid(tmp_path, sizes=[]))


def test_a_data_set_without_a_train_list_is_refused(tmp_path: Path) -> None:
    root = write_vehicleid(tmp_path)
    (root / "train_test_split" / "train_list.txt").unlink()

    with pytest.raises(ValueError, match=r"list missing in train_test_split/ \(train_list\.txt\)"):
        read_vehicleid(root)


def test_odd_lines_are_tolerated_and_broken_ones_refused(tmp_path: Path) -> None:
    root = write_vehicleid(tmp_path)
    path = root / "train_test_split" / "train_list.txt"
    write_lines(path, ["000010 1", "", "  000011.JPG\t1  ", "000010 1"], ending="\r\n")

    assert [record.key for record in read_vehicleid(root) if record.split == "train"] == ["000010", "000011"]

    write_lines(path, ["000010 1", "000011"])
    with pytest.raises(ValueError, match=r"`imagename vehicle`.*line 2: '000011'"):
        read_vehicleid(root)


def test_an_image_of_two_vehicles_is_refused(tmp_path: Path) -> None:
    root = write_vehicleid(tmp_path)
    lists = root / "train_test_split"
    write_lines(lists / "test_list_800.txt", ["000110 11", "000110 12"])
    with pytest.raises(ValueError, match="lists again with another vehicle"):
        read_vehicleid(root)

    write_lines(lists / "test_list_800.txt", ["000110 99"])
    with pytest.raises(ValueError, match="two test lists give different vehicles"):
        read_vehicleid(root)


def test_listed_images_that_are_missing_are_refused(tmp_path: Path) -> None:
    root = write_vehicleid(tmp_path)
    (root / "image" / "000110.jpg").unlink()

    with pytest.raises(ValueError, match=r"test image that image/ lacks.*000110"):
        read_vehicleid(root)


def test_model_and_colour_numbers_become_attributes(tmp_path: Path) -> None:
    root = write_vehicleid(tmp_path)
    write_lines(root / "attribute" / "model_attr.txt", ["1 17"])
    write_lines(root / "attribute" / "color_attr.txt", ["1 4", "11 2"])

    attributes = {record.vehicle_id: dict(record.attributes) for record in read_vehicleid(root)}

    assert attributes == {"1": {"model": "17", "colour": "4"}, "2": {}, "11": {"colour": "2"}, "12": {}, "13": {}}
