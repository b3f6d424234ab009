"""A data set as a CSV or Parquet table."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from reid.data.survey import KEY_PATTERN
from reid.data.table import KEYPOINT_COLUMNS, read_table, survey_table
from tests.unit.data.raw_layouts import counted, write_image, write_lines


def write_table(folder: Path, *rows: str, header: str = "path,vehicle_id,split", images: bool = True) -> Path:
    """A CSV whose first column is the path; the images are drawn."""
    if images:
        for row in rows:
            write_image(folder / row.split(",")[0])
    return write_lines(folder / "table.csv", [header, *rows])


def test_paths_are_relative_to_the_table_and_the_minimal_columns_suffice(tmp_path: Path) -> None:
    path = write_table(tmp_path, "a/1.jpg,red car,train", "b/2.png,7,query", "b/3.png,7,gallery", "b/4.png,8,test")

    records = read_table(path)

    assert [record.path for record in records] == [
        tmp_path / name for name in ("a/1.jpg", "b/2.png", "b/3.png", "b/4.png")
    ]
    assert [record.key for record in records] == ["1", "2", "3", "4"]
    assert [(record.vehicle_id, record.split) for record in records[:2]] == [("red car", "train"), ("7", "query")]
    assert all(record.camera_id is None and record.keypoints is None for record in records)
    assert counted(survey_table(path).findings) == {"no-camera": 1}
    assert read_table(tmp_path)[0].key == "1"


def test_optional_and_unknown_columns_are_carried_along(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    header = "path,vehicle_id,split,camera_id,timestamp,orientation,subsets,mask_path,colour"
    path = write_table(
        tmp_path, "1.jpg,7,test,c1,12:00,3,small large,1.png,blue", "2.jpg,7,test,,,rear,,,", header=header
    )

    first, second = read_table(path)

    assert (first.camera_id, first.timestamp, first.orientation) == ("c1", "12:00", 3)
    assert (first.subsets, first.mask_path, dict(first.attributes)) == (
        ("small", "large"),
        tmp_path / "1.png",
        {"colour": "blue"},
    )
    assert (second.camera_id, second.timestamp, second.orientation, second.mask_path) == (None, None, 1, None)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separator_byte_order_mark_and_windows_endings_are_tolerated(tmp_path: Path, separator: str) -> None:
    write_image(tmp_path / "1.jpg")
    lines = [separator.join(cells) for cells in (("path", "vehicle_id", "split"), ("1.jpg", " 7 ", "Train"))]
    (tmp_path / "t.csv").write_bytes(("\ufeff" + "\r\n".join([*lines, "", ""])).encode())

    records = read_table(tmp_path / "t.csv")

    assert [(record.vehicle_id, record.split) for record in records] == [("7", "train")]


def test_keypoints_are_read_and_empty_rows_count_as_never_annotated(tmp_path: Path) -> None:
    cells = [["3", "4", "nan", "5", "-1", "-1", "", ""] + ["-1"] * 32, [""] * 40]
    rows = [f"{number}.jpg,7,train,{','.join(row)}" for number, row in enumerate(cells)]
    path = write_table(tmp_path, *rows, header="path,vehicle_id,split," + ",".join(KEYPOINT_COLUMNS))

    first, second = read_table(path)

    assert first.keypoints is not None
    assert first.keypoints[0].tolist() == [3, 4, 1]
    assert first.keypoints[1:].sum() == 0
    assert second.keypoints is None


def test_a_parquet_table_gives_the_same_records_as_a_csv(tmp_path: Path) -> None:
    csv = write_table(tmp_path, "1.jpg,7,train,2", "2.jpg,12,query,", header="path,vehicle_id,split,camera_id")
    columns = {
        "path": ["1.jpg", "2.jpg"],
        "vehicle_id": [7.0, 12.0],
        "split": ["train", "query"],
        "camera_id": [2, None],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")

    assert read_table(tmp_path / "table.parquet") == read_table(csv)
    assert [record.camera_id for record in read_table(csv)] == ["2", None]


def test_names_used_twice_in_a_split_get_keys_from_their_whole_path(tmp_path: Path) -> None:
    path = write_table(tmp_path, "a/1.jpg,1,train", "b/1.jpg,2,train", "b.1/ü.jpg,2,query")

    keys = [record.key for record in read_table(path)]

    assert len(set(keys)) == 3
    assert all(KEY_PATTERN.fullmatch(key) for key in keys)
    assert keys == [record.key for record in read_table(path)]


def test_dotted_and_very_long_names_become_safe_keys(tmp_path: Path) -> None:
    path = write_table(tmp_path, "a.b c.jpg,1,train", "a_b_c.jpg,1,train", f"{'x' * 200}.jpg,1,train")

    keys = [record.key for record in read_table(path)]

    assert all(KEY_PATTERN.fullmatch(key) for key in keys)
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,vehicle_idd,split", r"expected columns vehicle_id, found .*did you mean 'vehicle_idd'"),
        ("path,vehicle_id,split,x1,y1", r"2 of the 40 keypoint columns, lacks x2, y2"),
        ("path,vehicle_id,split,split", r"columns split occur twice"),
        ("", r"expected columns path, vehicle_id, split, found none"),
    ],
)
def test_wrong_columns_are_refused_by_name(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write_lines(tmp_path / "t.csv", [header]))


def test_all_unusable_rows_come_in_one_message(tmp_path: Path) -> None:
    write_image(tmp_path / "1.jpg")
    path = write_table(tmp_path, "1.jpg,7,trian", "1.jpg,,train", "gone.jpg,7,train", images=False)

    with pytest.raises(ValueError, match="cannot be used") as caught:
        read_table(path)

    for part in ("'trian' (did you mean 'train'?) (row 1: 1.jpg)", "without a vehicle_id", "row 3: gone.jpg"):
        assert part in str(caught.value)


def test_an_image_listed_twice_in_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="several images of a split share"):
        read_table(write_table(tmp_path, "a/1.jpg,1,train", "a/1.jpg,2,train"))


def test_ragged_rows_are_refused_with_the_first_of_them(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.csv", ["path,vehicle_id,split", "1.jpg,7,train", "2.jpg,7,train,9"])

    with pytest.raises(ValueError, match="the header has 3 columns, row 2 has 4"):
        read_table(path)


def test_a_row_with_words_for_keypoints_is_refused(tmp_path: Path) -> None:
    row = "1.jpg,7,train," + ",".join(["left"] * 40)
    path = write_table(tmp_path, row, header="path,vehicle_id,split," + ",".join(KEYPOINT_COLUMNS))

    with pytest.raises(ValueError, match="keypoints that are not numbers"):
        read_table(path)


def test_what_is_not_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        read_table(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a Parquet file"):
        read_table(tmp_path / "t.parquet")


def test_images_of_no_known_vehicle_are_left_out_of_the_evaluation_and_refused_elsewhere(tmp_path: Path) -> None:
    known = ("1.jpg,1,train", "2.jpg,2,train", "3.jpg,3,query", "4.jpg,3,gallery", "5.jpg,4,test")
    left_out = ("6.jpg,-1,gallery", "7.jpg,-1.0,gallery", "8.jpg,-2,test")
    survey = survey_table(write_table(tmp_path, *known, *left_out))
    assert [record.key for record in survey.records] == ["1", "2", "3", "4", "5"]
    assert counted(survey.findings) == {"no-camera": 1, "junk-image": 3}
    path = write_table(tmp_path, *known, "6.jpg,-1,train", "7.jpg,-1,query")
    with pytest.raises(ValueError, match=r"2 x row of no known vehicle .*row 6: 6\.jpg, row 7: 7\.jpg"):
        read_table(path)


def test_a_negative_camera_is_an_unknown_one(tmp_path: Path) -> None:
    header = "path,vehicle_id,split,camera_id"
    survey = survey_table(write_table(tmp_path, "1.jpg,1,query,-1", "2.jpg,1,gallery,c2", header=header))
    assert [record.camera_id for record in survey.records] == [None, "c2"]
    assert counted(survey.findings) == {"unknown-camera": 1}


def test_files_of_another_kind_are_told_from_missing_ones_and_windows_paths_are_read(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "2.tif").write_bytes(b"II*")
    rows = ["a\\1.jpg,7,query", "a/2.tif,7,gallery", "a/3.jpg,7,gallery"]
    survey = survey_table(write_table(tmp_path, *rows, images=False))
    assert [record.path for record in survey.records] == [tmp_path / "a" / "1.jpg"]
    found = {finding.kind: finding for finding in survey.findings}
    assert "no image that is read (.bmp, .jpeg, .jpg, .png, .webp)" in found["unsupported-ending"].message
    assert "does not exist" in found["missing-image"].message
    assert counted(survey.findings)["unsupported-ending"] == counted(survey.findings)["missing-image"] == 1
