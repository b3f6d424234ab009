"""One configuration for every raw format."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from reid.data.readers import DatasetConfig, Format, detect_format, read_dataset
from reid.data.real_vehicles import RealVehiclesOptions
from reid.data.shard_set import open_shards
from reid.data.shards import pack_shards
from tests.unit.data.raw_layouts import (
    write_image,
    write_lines,
    write_real_vehicles,
    write_vehicleid,
    write_veri,
    write_veriwild,
)


def write_small_table(root: Path) -> Path:
    """A table of two images."""
    for name in ("1.jpg", "2.jpg"):
        write_image(root / name)
    write_lines(root / "table.csv", ["path,vehicle_id,split", "1.jpg,1,train", "2.jpg,2,train"])
    return root


WRITERS: dict[Format, Callable[[Path], Path]] = {
    "veri776": write_veri,
    "vehicleid": write_vehicleid,
    "veriwild": write_veriwild,
    "real-vehicles": write_real_vehicles,
    "table": write_small_table,
}


@pytest.mark.parametrize("format_name", WRITERS)
def test_every_format_is_found_out_and_read_with_unique_safe_keys(tmp_path: Path, format_name: Format) -> None:
    root = WRITERS[format_name](tmp_path / "data")

    assert detect_format(root) == format_name
    records = read_dataset(DatasetConfig(format=format_name, root=str(root)))

    assert records
    assert len({(record.split, record.key) for record in records}) == len(records)
    assert all(record.path.is_file() for record in records)


def test_warnings_about_a_data_set_go_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_veri(tmp_path, keypoints=False)

    with caplog.at_level(logging.INFO):
        read_dataset(DatasetConfig(format="veri776", root=str(root)))

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "PPT's local branch has nothing to learn from" in caplog.text


def test_options_are_passed_to_the_reader_of_their_format(tmp_path: Path) -> None:
    options = RealVehiclesOptions(train_split="train+val-minus-held-out", held_out=3)
    config = DatasetConfig(format="real-vehicles", root=str(write_real_vehicles(tmp_path)), real_vehicles=options)

    assert len({record.vehicle_id for record in read_dataset(config) if record.split == "train"}) == 2


def test_options_that_change_what_is_in_the_set_come_as_they_take_effect(tmp_path: Path) -> None:
    assert DatasetConfig(format="veri776", root="x", keypoints="k").content_options() == {}
    told = DatasetConfig(format="veri776", root="x", on_duplicate="last").content_options()
    assert told == {"format": "veri776", "on_duplicate": "last"}
    drawn = RealVehiclesOptions(train_split="train+val-minus-held-out", held_out=3)
    root = str(write_real_vehicles(tmp_path / "raw"))
    config = DatasetConfig(format="real-vehicles", root=root, real_vehicles=drawn)
    expected = {"train_split": "train+val-minus-held-out", "held_out": 3, "seed": 0}
    assert config.content_options() == {"format": "real-vehicles", "real_vehicles": expected}
    pack_shards(read_dataset(config), tmp_path / "set", source=config.content_options())
    with open_shards(tmp_path / "set") as shards:
        assert shards.manifest.source == config.content_options()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "vehicleid", "keypoints": "k.txt"}, "format vehicleid has no keypoint files"),
        ({"format": "table", "on_duplicate": "last"}, "format table has no keypoint files"),
        (
            {"format": "veri776", "real_vehicles": {"train_split": "train+val-minus-held-out"}},
            "only for format real-vehicles",
        ),
        ({"format": "veri"}, "veri776"),
        ({"format": "veri776", "rot": "x"}, "rot"),
    ],
)
def test_options_that_a_format_does_not_know_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetConfig.model_validate({"root": "x", **values})


def test_an_incomplete_data_set_is_refused_as_what_it_resembles(tmp_path: Path) -> None:
    (tmp_path / "image_train").mkdir()

    with pytest.raises(ValueError, match=r"VeRi-776 not found: .* lacks image_query, image_test"):
        detect_format(tmp_path)


def test_an_unknown_folder_is_refused_with_every_known_tree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no known data set") as caught:
        detect_format(tmp_path)

    for part in ("image_train/", "train_test_split/train_list.txt", "vehicle_info.txt", "car_0003_cam1.jpg"):
        assert part in str(caught.value)


def test_a_folder_of_several_data_sets_is_refused_by_their_names(tmp_path: Path) -> None:
    write_veri(tmp_path / "VeRi")
    write_real_vehicles(tmp_path / "real-vehicles")

    with pytest.raises(ValueError, match=r"several data sets \(veri776, real-vehicles\)"):
        detect_format(tmp_path)
