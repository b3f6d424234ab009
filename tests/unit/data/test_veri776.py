"""VeRi-776 in its raw layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reid.data.veri776 import read_veri776, survey_veri776
from tests.unit.data.raw_layouts import (
    VERI_TEST,
    VERI_TRAIN,
    counted,
    keypoint_line,
    write_image,
    write_lines,
    write_veri,
)


def kinds(root: Path) -> dict[str, int]:
    """Kind -> count of what a survey found."""
    return counted(survey_veri776(root).findings)


def test_names_carry_vehicle_camera_and_time(tmp_path: Path) -> None:
    record = read_veri776(write_veri(tmp_path))[1]

    assert (record.key, record.split) == ("0001_c002_00000020_0", "train")
    assert (record.vehicle_id, record.camera_id, record.timestamp) == ("0001", "c002", "00000020")
    assert record.path == tmp_path / "image_train" / "0001_c002_00000020_0.jpg"


def test_queries_are_records_of_their_own_and_stay_in_the_gallery(tmp_path: Path) -> None:
    records = read_veri776(write_veri(tmp_path))

    by_split = {
        split: [record.path.name for record in records if record.split == split] for split in ("query", "gallery")
    }
    assert by_split == {"query": [VERI_TEST[0], VERI_TEST[2]], "gallery": list(VERI_TEST)}
    assert sum(record.split == "train" for record in records) == len(VERI_TRAIN)


@pytest.mark.parametrize("name", ["VeRi", "veri", "VeRi-776", "VeRi_776"])
def test_the_parent_of_any_usual_root_is_enough(tmp_path: Path, name: str) -> None:
    write_veri(tmp_path / name)

    assert len(read_veri776(tmp_path)) == len(read_veri776(tmp_path / "VeRi")) == 8


def test_keypoints_beside_the_images_are_joined_to_train_query_and_gallery(tmp_path: Path) -> None:
    for record in read_veri776(write_veri(tmp_path)):
        assert record.keypoints is not None
        number, place, orientation = (1, (3, 4), 2) if record.split == "train" else (15, (5, 6), 1)
        assert record.keypoints[number - 1].tolist() == [*place, 1]
        assert record.keypoints[:, 2].sum() == 1
        assert record.orientation == orientation


def test_an_image_without_a_keypoint_line_stays_in_the_data(tmp_path: Path) -> None:
    root = write_veri(tmp_path)
    write_lines(root / "keypoint_test.txt", [keypoint_line(VERI_TEST[1], points={1: (1, 1)})])

    records = read_veri776(root)

    assert len(records) == 8
    assert [record.keypoints is None for record in records if record.split == "gallery"] == [True, False, True]
    assert kinds(root)["keypoints-missing"] == 4  # two queries, and again in the gallery


def test_keypoints_may_lie_elsewhere_or_nowhere(tmp_path: Path) -> None:
    root = write_veri(tmp_path / "VeRi", keypoints=False)
    elsewhere = write_lines(
        tmp_path / "labels" / "keypoint_test.txt", [keypoint_line(VERI_TEST[0], points={2: (1, 1)})]
    )

    assert all(record.keypoints is None for record in read_veri776(root))
    assert kinds(root)["no-keypoint-file"] == 1
    for given in (elsewhere, elsewhere.parent):
        assert sum(record.keypoints is not None for record in read_veri776(root, given)) == 2
    with pytest.raises(ValueError, match=r"keypoint_train\.txt or keypoint_test\.txt, got"):
        read_veri776(root, tmp_path)


def test_conflicting_keypoint_lines_refuse_the_data_set_unless_the_last_is_asked_for(tmp_path: Path) -> None:
    root = write_veri(tmp_path)
    lines = [keypoint_line(VERI_TEST[0], points={1: (x, 1)}) for x in (1, 2)]
    write_lines(root / "keypoint_test.txt", lines)

    with pytest.raises(ValueError, match="annotated again in another way"):
        read_veri776(root)
    query = next(record for record in read_veri776(root, on_duplicate="last") if record.split == "query")
    assert query.keypoints is not None
    assert query.keypoints[0].tolist() == [2, 1, 1]


def test_masks_beside_the_images_are_found(tmp_path: Path) -> None:
    for record in read_veri776(write_veri(tmp_path, masks=True)):
        folder = {"train": "mask_train", "query": "mask_query", "gallery": "mask_test"}[record.split]
        assert record.mask_path == tmp_path / folder / f"{record.key}.png"


def test_a_missing_mask_is_said_and_tolerated(tmp_path: Path) -> None:
    root = write_veri(tmp_path, masks=True)
    (root / "mask_query" / VERI_TEST[0].replace(".jpg", ".png")).unlink()

    assert kinds(root)["mask-missing"] == 1
    assert sum(record.mask_path is None for record in read_veri776(root)) == 1


def test_without_lists_the_folders_decide_in_the_order_of_names(tmp_path: Path) -> None:
    records = read_veri776(write_veri(tmp_path, lists=False))

    assert [record.path.name for record in records if record.split == "gallery"] == sorted(VERI_TEST)


def test_a_list_decides_the_order_and_leaves_other_files_out(tmp_path: Path) -> None:
    root = write_veri(tmp_path)
    write_lines(root / "name_train.txt", [VERI_TRAIN[2], "", VERI_TRAIN[0], VERI_TRAIN[0]], ending="\r\n")

    records = [record.path.name for record in read_veri776(root) if record.split == "train"]

    assert records == [VERI_TRAIN[2], VERI_TRAIN[0]]
    assert kinds(root) == {"unlisted-image": 1, "repeated-line": 1, "keypoints-unused": 1}


def test_listed_images_that_are_missing_are_refused_by_name(tmp_path: Path) -> None:
    root = write_veri(tmp_path)
    (root / "image_test" / VERI_TEST[1]).unlink()

    with pytest.raises(ValueError, match=rf"1 x image that name_test\.txt lists but image_test/ lacks.*{VERI_TEST[1]}"):
        read_veri776(root)


def test_upper_case_endings_match_lower_case_lists(tmp_path: Path) -> None:
    root = write_veri(tmp_path)
    path = root / "image_train" / VERI_TRAIN[0]
    path.rename(path.with_suffix(".JPG"))

    assert read_veri776(root)[0].path.name == VERI_TRAIN[0].replace(".jpg", ".JPG")


@pytest.mark.parametrize(
    "name", ["holiday.jpg", "0001_00000010_0.jpg", "0001_c001_00000010_0 (1).jpg", "0001_c00x_1_0.jpg"]
)
def test_names_that_do_not_say_vehicle_and_camera_are_refused(tmp_path: Path, name: str) -> None:
    root = write_veri(tmp_path, lists=False)
    write_image(root / "image_train" / name)

    with pytest.raises(ValueError, match="does not say vehicle and camera"):
        read_veri776(root)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write_veri(tmp_path, lists=False)
    write_image(root / "image_train" / VERI_TRAIN[0].replace(".jpg", ".png"))

    with pytest.raises(ValueError, match=rf"several images of a split share.*train/{VERI_TRAIN[0][:-4]}"):
        read_veri776(root)


def test_all_errors_come_in_one_message(tmp_path: Path) -> None:
    root = write_veri(tmp_path)
    (root / "image_train" / VERI_TRAIN[0]).unlink()
    (root / "image_test" / VERI_TEST[0]).unlink()
    write_lines(root / "keypoint_test.txt", ["nonsense"])

    with pytest.raises(ValueError, match="cannot be used as it is") as caught:
        read_veri776(root)

    for part in ("name_train.txt", "name_test.txt", "keypoint_test.txt line 1"):
        assert part in str(caught.value)


def test_images_of_no_known_vehicle_are_left_out(tmp_path: Path) -> None:
    root = write_veri(tmp_path, lists=False)
    write_image(root / "image_test" / "-1_c001_00000001_0.jpg")

    assert len(read_veri776(root)) == 8
    assert kinds(root)["no-identity"] == 1


def test_colour_and_type_come_from_the_chinese_xml(tmp_path: Path) -> None:
    root = write_veri(tmp_path)
    items = [
        f'<Item imageName="{VERI_TRAIN[0]}" vehicleID="0001" cameraID="c001" colorID="1" typeID="2" note="大众"/>',
        f'<Item imageName="{VERI_TRAIN[1]}" vehicleID="0001" cameraID="c002" colorID="1" typeID="0"/>',
        f'<Item imageName="{VERI_TRAIN[2]}" vehicleID="0002" cameraID="c009" colorID="9" typeID="1"/>',
    ]
    text = f'<?xml version="1.0" encoding="gb2312"?>\n<TrainingImages><Items>{"".join(items)}</Items></TrainingImages>'
    (root / "train_label.xml").write_bytes(text.encode("gb18030"))
    write_lines(root / "list_color.txt", ["1 yellow", "2 orange"])

    records = read_veri776(root)

    expected = [{"colour": "yellow", "type": "2"}, {"colour": "yellow"}, {"colour": "9", "type": "1"}]
    assert [dict(record.attributes) for record in records[:3]] == expected
    assert records[2].camera_id == "c001"
    assert kinds(root)["label-contradiction"] == 1


@pytest.mark.parametrize("text", ["<Items><Item", '<!DOCTYPE a [<!ENTITY b "c">]><Items/>'])
def test_unusable_xml_costs_only_the_attributes(tmp_path: Path, text: str) -> None:
    root = write_veri(tmp_path)
    (root / "test_label.xml").write_text(text)

    assert len(read_veri776(root)) == 8
    assert kinds(root)["unreadable-xml"] == 1


def test_records_share_no_state_through_their_keypoints(tmp_path: Path) -> None:
    first, second = read_veri776(write_veri(tmp_path))[:2]

    assert first.keypoints is not None
    assert second.keypoints is not None
    assert not np.shares_memory(first.keypoints, second.keypoints)


def test_a_folder_that_is_not_veri_shows_the_expected_tree(tmp_path: Path) -> None:
    (tmp_path / "image_train").mkdir()

    with pytest.raises(ValueError, match=r"lacks image_query, image_test\. Expected") as caught:
        read_veri776(tmp_path)
    assert "keypoint_train.txt" in str(caught.value)
