"""Finding the root of a raw data set, and reading the plain files inside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reid.data.layout import Layout, by_casefolded_name, find_root, list_images, read_lines
from reid.data.readers import LAYOUTS

LAYOUT = Layout(
    data_set="Example",
    spellings=frozenset({"example", "examplev10"}),
    required=("image", "lists"),
    tree="example/\n  image/\n  lists/",
)


def make_root(folder: Path) -> Path:
    for entry in LAYOUT.required:
        (folder / entry).mkdir(parents=True)
    return folder


def test_the_root_itself_its_parent_its_inside_and_its_grandparent_all_find_it(tmp_path: Path) -> None:
    root = make_root(tmp_path / "Example_V1.0" / "example")

    for given in (root, root.parent, root / "image", tmp_path):
        assert find_root(given, LAYOUT) == root


@pytest.mark.parametrize("spelling", ["example", "EXAMPLE", "Example-V1.0", "Example_v1.0"])
def test_another_usual_spelling_of_a_missing_folder_is_found(tmp_path: Path, spelling: str) -> None:
    root = make_root(tmp_path / "Example_V1.0")

    assert find_root(tmp_path / spelling, LAYOUT) == root


def test_a_folder_of_any_name_is_recognised_by_what_it_holds(tmp_path: Path) -> None:
    root = make_root(tmp_path / "my pictures")

    assert find_root(tmp_path, LAYOUT) == root


def test_a_well_named_folder_wins_over_another_that_fits(tmp_path: Path) -> None:
    make_root(tmp_path / "backup")
    root = make_root(tmp_path / "example")

    assert find_root(tmp_path, LAYOUT) == root


def test_two_folders_that_fit_equally_are_refused_by_name(tmp_path: Path) -> None:
    make_root(tmp_path / "one")
    make_root(tmp_path / "two")

    with pytest.raises(ValueError, match=r"several folders that fit \(one, two\)"):
        find_root(tmp_path, LAYOUT)


def test_a_missing_folder_is_named_with_the_expected_tree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist") as caught:
        find_root(tmp_path / "nowhere", LAYOUT)

    assert LAYOUT.tree in str(caught.value)


def test_an_incomplete_folder_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "example" / "image").mkdir(parents=True)

    with pytest.raises(ValueError, match="example lacks lists"):
        find_root(tmp_path, LAYOUT)


def test_a_folder_without_anything_known_is_shown_with_its_contents(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").touch()

    with pytest.raises(ValueError, match=r"holds holiday\.txt"):
        find_root(tmp_path, LAYOUT)


def test_the_trees_of_all_data_sets_show_every_required_entry() -> None:
    for layout in LAYOUTS.values():
        for entry in layout.required:
            assert entry in layout.tree


@pytest.mark.parametrize(
    "content",
    [b"a\nb c\n", b"a\r\nb c\r\n", b"\xef\xbb\xbfa\n\n  b c  \n\n", b"a\rb c"],
    ids=["plain", "windows", "mark, blank lines and spaces", "old macintosh"],
)
def test_lines_are_the_same_whatever_ends_them(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)

    assert read_lines(path) == ["a", "b c"]


def test_chinese_text_is_read_in_its_own_encoding(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("大众".encode("gb18030"))

    assert read_lines(path) == ["大众"]


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.txt cannot be read"):
        read_lines(tmp_path / "gone.txt")


def test_images_are_sorted_and_hidden_or_other_files_are_left_out(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "._a.jpg", "Thumbs.db", "notes.txt"):
        (tmp_path / name).touch()

    images = list_images(tmp_path)

    assert list(images) == ["a.png", "b.JPG"]
    assert by_casefolded_name(images)["b.jpg"] == by_casefolded_name(images)["b"] == tmp_path / "b.JPG"
