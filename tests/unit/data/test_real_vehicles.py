"""The real photographs' layout, and the held-out split of their vehicles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from reid.contracts import Record
from reid.data.real_vehicles import RealVehiclesOptions, read_real_vehicles, survey_real_vehicles
from tests.unit.data.raw_layouts import counted, write_lines, write_real_vehicles

SHARED = Path(__file__).parents[3] / "../shared/data/real-vehicles"


def vehicles(records: list[Record], split: str) -> set[str]:
    """Identities of a split."""
    return {record.vehicle_id for record in records if record.split == split}


def test_names_carry_type_vehicle_and_camera(tmp_path: Path) -> None:
    record = read_real_vehicles(write_real_vehicles(tmp_path))[1]

    assert (record.key, record.split, record.vehicle_id, record.camera_id) == (
        "car_0000_cam2",
        "train",
        "car_0000",
        "cam2",
    )
    assert dict(record.attributes) == {"type": "car"}


def test_val_images_are_queries_and_gallery_at_once(tmp_path: Path) -> None:
    records = read_real_vehicles(write_real_vehicles(tmp_path))

    keys = {split: [record.key for record in records if record.split == split] for split in ("query", "gallery")}
    assert keys["query"] == keys["gallery"] == ["truck_0003_cam1", "truck_0003_cam2", "car_0004_cam1", "car_0004_cam2"]
    assert vehicles(records, "train") == {"car_0000", "truck_0001", "car_0002"}


def test_keypoints_are_joined_where_there_are_some(tmp_path: Path) -> None:
    root = write_real_vehicles(tmp_path)
    annotated = [record for record in read_real_vehicles(root) if record.keypoints is not None]

    assert [(record.key, record.orientation) for record in annotated] == [("car_0000_cam1", 7)]
    assert counted(survey_real_vehicles(root).findings)["keypoints-missing"] == 5 + 4 + 4

    (root / "keypoints.txt").unlink()
    assert all(record.keypoints is None for record in read_real_vehicles(root))


def test_held_out_vehicles_are_the_test_set_and_all_others_train(tmp_path: Path) -> None:
    root = write_real_vehicles(tmp_path, num_train=9, num_val=6)
    options = RealVehiclesOptions(train_split="train+val-minus-held-out", held_out=5, seed=3)

    records = read_real_vehicles(root, options)

    assert len(vehicles(records, "query")) == 5
    assert vehicles(records, "query") == vehicles(records, "gallery")
    assert len(vehicles(records, "train")) == 10
    assert not vehicles(records, "train") & vehicles(records, "query")
    assert Counter(record.split for record in records) == {"train": 20, "query": 10, "gallery": 10}


def test_the_held_out_draw_follows_the_seed_and_not_the_order_of_the_lists(tmp_path: Path) -> None:
    root = write_real_vehicles(tmp_path, num_train=9, num_val=6)

    def drawn(seed: int) -> set[str]:
        options = RealVehiclesOptions(train_split="train+val-minus-held-out", held_out=5, seed=seed)
        return vehicles(read_real_vehicles(root, options), "query")

    before = [drawn(seed) for seed in range(4)]
    lines = (root / "train.txt").read_text().split()
    write_lines(root / "train.txt", reversed(lines))
    after = [drawn(seed) for seed in range(4)]

    assert before == after
    assert len({frozenset(names) for names in before}) > 1


def test_options_that_would_do_nothing_or_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="held_out and seed need train_split"):
        RealVehiclesOptions(held_out=5)
    options = RealVehiclesOptions(train_split="train+val-minus-held-out", held_out=4)
    with pytest.raises(ValueError, match=r"held_out=4 of 5 vehicles leaves fewer than 2.*at most 3"):
        read_real_vehicles(write_real_vehicles(tmp_path), options)


def test_odd_lines_are_tolerated_and_missing_images_refused(tmp_path: Path) -> None:
    root = write_real_vehicles(tmp_path)
    write_lines(
        root / "val.txt",
        ["images/truck_0003_cam1.JPG", "", " truck_0003_cam2.jpg ", "truck_0003_cam2.jpg"],
        ending="\r\n",
    )

    assert [record.key for record in read_real_vehicles(root) if record.split == "query"] == [
        "truck_0003_cam1",
        "truck_0003_cam2",
    ]

    write_lines(root / "val.txt", ["bus_9999_cam1.jpg"])
    with pytest.raises(ValueError, match=r"val\.txt lists but images/ lacks.*bus_9999_cam1\.jpg"):
        read_real_vehicles(root)


def test_names_of_another_grammar_are_refused(tmp_path: Path) -> None:
    root = write_real_vehicles(tmp_path)
    (root / "images" / "car_0004_cam1.jpg").rename(root / "images" / "car4.jpg")
    write_lines(root / "val.txt", ["car4.jpg"])

    with pytest.raises(ValueError, match=r"type, number and camera.*car4\.jpg"):
        read_real_vehicles(root)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/real-vehicles")
def test_the_shared_photographs_have_the_published_counts() -> None:
    records = read_real_vehicles(SHARED)

    assert Counter(record.split for record in records) == {"train": 810, "query": 204, "gallery": 204}
    assert len(vehicles(records, "train")) == 405
    assert len(vehicles(records, "query")) == 102
    assert sum(record.keypoints is not None for record in records if record.split != "query") == 250
    held_out = read_real_vehicles(SHARED, RealVehiclesOptions(train_split="train+val-minus-held-out"))
    assert (len(vehicles(held_out, "train")), len(vehicles(held_out, "gallery"))) == (447, 60)
