"""Keypoint annotation files and the rules that make their points safe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reid.data.keypoint_labels import clean_keypoints, read_keypoint_file, survey_keypoint_files

VERI_FILE = Path(__file__).parents[3] / "../shared/data/veri776-keypoints/keypoint_test.txt"


def line(name: str, *, points: dict[int, tuple[object, object]] | None = None, orientation: object = 1) -> str:
    """A line in which only `points` (by number) are visible."""
    pairs = [(points or {}).get(number, (-1, -1)) for number in range(1, 21)]
    return f"{name} {' '.join(f'{x} {y}' for x, y in pairs)} {orientation}"


def write(path: Path, *lines: str, ending: str = "\n") -> Path:
    path.write_bytes(ending.join(lines).encode())
    return path


def test_points_visibility_and_orientation_are_read_and_joined_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "k.txt", line("VeRi/image_test/0001_c001_1_0.jpg", points={1: (3, 4), 20: (5.5, 6)}))

    found = read_keypoint_file(path).find("0001_c001_1_0")

    assert found is not None
    points, orientation = found
    expected = np.zeros((20, 3), dtype=np.float32)
    expected[0], expected[19] = (3, 4, 1), (5.5, 6, 1)
    np.testing.assert_array_equal(points, expected)
    assert orientation == 1


def test_blank_lines_windows_endings_backslashes_and_spaces_are_tolerated(tmp_path: Path) -> None:
    lines = ["", line("C:\\my data\\a 1.JPG", points={1: (1, 2)}), "   ", line("  b.jpg  "), ""]
    labels = read_keypoint_file(write(tmp_path / "k.txt", *lines, ending="\r\n"))

    assert labels.names == ("a 1", "b")


def test_identical_repetitions_are_harmless_and_counted(tmp_path: Path) -> None:
    once = line("a.jpg", points={1: (1, 2)})
    labels = read_keypoint_file(write(tmp_path / "k.txt", once, line("b.jpg", points={2: (1, 1)}), once))

    assert labels.lines == {"lines": 3, "distinct": 2, "repeated": 1, "all invisible": 0}
    assert [(finding.kind, finding.count) for finding in labels.findings] == [("keypoints-repeated", 1)]


def test_conflicting_repetitions_are_refused_unless_the_last_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "k.txt", line("a.jpg", points={1: (1, 2)}), line("a.jpg", points={1: (7, 8)}))

    with pytest.raises(ValueError, match=r"annotated again in another way.*on_duplicate=\"last\" \(a\)"):
        read_keypoint_file(path)
    found = read_keypoint_file(path, on_duplicate="last").find("a")

    assert found is not None
    assert found[0][0].tolist() == [7, 8, 1]


def test_a_repetition_with_another_orientation_is_a_conflict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another way"):
        read_keypoint_file(write(tmp_path / "k.txt", line("a.jpg", orientation=1), line("a.jpg", orientation=2)))


@pytest.mark.parametrize(
    "broken",
    [
        "a.jpg 1 2 3",
        line("a.jpg").rsplit(" ", 1)[0],
        line("a.jpg") + " 7",
        line("a.jpg", points={3: ("x", 1)}),
        "my car.jpg " + " ".join(["-1"] * 40),
    ],
    ids=["short", "39 numbers", "42 numbers", "a word", "40 numbers behind a space"],
)
def test_lines_of_another_shape_are_refused_with_their_number(tmp_path: Path, broken: str) -> None:
    with pytest.raises(ValueError, match=r"41 numbers.*k\.txt line 2"):
        read_keypoint_file(write(tmp_path / "k.txt", line("fine.jpg"), broken))


def test_all_broken_lines_are_counted_in_one_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"30 x keypoint line .* and 25 more"):
        read_keypoint_file(write(tmp_path / "k.txt", *[f"{number}.jpg 1" for number in range(30)]))


def test_numbers_that_are_none_and_half_points_become_invisible(tmp_path: Path) -> None:
    path = write(tmp_path / "k.txt", line("a.jpg", points={1: ("nan", 2), 2: ("inf", 1), 3: (-1, 5), 4: (6, 7)}))

    labels = read_keypoint_file(path)

    assert labels.keypoints[0, :, 2].nonzero()[0].tolist() == [3]
    assert np.isfinite(labels.keypoints).all()
    assert {finding.kind for finding in labels.findings} == {"keypoint-not-finite", "keypoint-half"}


def test_an_orientation_that_does_not_exist_is_unknown(tmp_path: Path) -> None:
    labels = read_keypoint_file(write(tmp_path / "k.txt", line("a.jpg", orientation=8), line("b.jpg", orientation=-1)))

    assert labels.orientations.tolist() == [-1, -1]
    assert labels.find("a") is not None
    assert [finding.count for finding in labels.findings if finding.kind == "orientation"] == [1]


def test_several_files_are_one_annotation(tmp_path: Path) -> None:
    paths = [write(tmp_path / "1.txt", line("a.jpg")), write(tmp_path / "2.txt", line("b.jpg"), line("a.jpg"))]

    labels = survey_keypoint_files(paths)

    assert labels.names == ("a", "b")
    assert labels.num_lines == 3


def points(**places: tuple[float, float]) -> NDArray[np.float32]:
    """(20, 3) keypoints, visible at the places p1, p2 ..."""
    array = np.zeros((20, 3), dtype=np.float32)
    for name, place in places.items():
        array[int(name[1:]) - 1] = (*place, 1)
    return array


def test_points_within_the_image_are_untouched() -> None:
    given = points(p1=(0, 0), p2=(99, 49), p3=(-0.4, 49.4), p4=(12.25, 7.5))

    cleaned, counts = clean_keypoints(given, 100, 50)

    np.testing.assert_array_equal(cleaned, given)
    assert not counts


def test_points_just_outside_are_moved_in_and_further_ones_vanish() -> None:
    given = points(p1=(-2.5, 10), p2=(101.5, 51.5), p3=(-2.6, 10), p4=(50, 52), p5=(1000, 10))

    cleaned, counts = clean_keypoints(given, 100, 50)

    np.testing.assert_array_equal(cleaned, points(p1=(0, 10), p2=(99, 49)))
    assert counts == {"clipped": 2, "outside": 3}


def test_points_that_are_not_numbers_vanish_even_when_marked_visible() -> None:
    given = points(p1=(1, 2), p2=(float("nan"), 2), p3=(3, float("inf")))
    given[3] = (5, 5, float("nan"))

    cleaned, counts = clean_keypoints(given, 100, 50)

    np.testing.assert_array_equal(cleaned, points(p1=(1, 2)))
    assert counts == {"not_finite": 3}


def test_invisible_points_leave_no_coordinates_behind_and_the_input_stays() -> None:
    given = points(p1=(1, 2))
    given[1] = (-1, -1, 0)
    before = given.copy()

    cleaned, counts = clean_keypoints(given, 100, 50)

    np.testing.assert_array_equal(cleaned, points(p1=(1, 2)))
    np.testing.assert_array_equal(given, before)
    assert not counts


def test_a_wrong_shape_or_an_empty_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(20, 2\)"):
        clean_keypoints(np.zeros((20, 2), dtype=np.float32), 10, 10)
    with pytest.raises(ValueError, match="0 x 10"):
        clean_keypoints(points(), 0, 10)


@pytest.mark.skipif(not VERI_FILE.is_file(), reason="needs ../shared/data/veri776-keypoints")
def test_the_published_veri_test_annotation_has_its_known_oddities() -> None:
    labels = read_keypoint_file(VERI_FILE)

    assert labels.lines == {"lines": 12_079, "distinct": 11_579, "repeated": 500, "all invisible": 2}
    assert {finding.kind: finding.count for finding in labels.findings} == {
        "keypoints-repeated": 500,
        "keypoints-all-invisible": 4,
    }
    assert np.bincount(labels.orientations).tolist() == [1262, 825, 64, 3021, 3202, 256, 1172, 1777]
    assert labels.find("0009_c017_00068800_0") is None  # the one query that was never annotated
