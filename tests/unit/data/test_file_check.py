"""Opening the files of a raw data set."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from reid.data.file_check import CHUNK, check_file, check_files
from tests.unit.data.raw_layouts import write_image

LIMITS = {"min_side": 8, "max_pixels": 10_000}


def bomb() -> bytes:
    """A PNG of a few bytes that declares 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_a_good_image_is_measured_and_hashed(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg")
    copy = tmp_path / "b.jpg"
    copy.write_bytes(path.read_bytes())

    first, second = (check_file(each, **LIMITS) for each in (path, copy))

    assert (first.fault, first.width, first.height, first.repairs) == (None, 40, 30, ())
    assert first == second
    assert first.digest != check_file(write_image(tmp_path / "c.jpg"), **LIMITS).digest


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "image_unreadable"),
        (b"<html>404</html>", "image_unreadable"),
        (bomb(), "image_too_large"),
    ],
    ids=["empty", "a web page", "a bomb"],
)
def test_files_that_are_no_image_are_faulty(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)

    assert check_file(path, **LIMITS).fault == fault


def test_cut_small_and_missing_files_are_faulty(tmp_path: Path) -> None:
    cut = write_image(tmp_path / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:-200])

    assert check_file(cut, **LIMITS).fault == "image_truncated"
    assert check_file(write_image(tmp_path / "small.png", width=7), **LIMITS).fault == "image_too_small"
    assert check_file(tmp_path / "gone.jpg", **LIMITS).fault == "image_missing"


def test_another_format_than_the_name_says_is_tolerated(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png").rename(tmp_path / "a.jpg")

    check = check_file(path, **LIMITS)

    assert (check.fault, check.repairs) == (None, ("mismatched_extension",))


def test_many_files_come_back_in_order_with_progress(tmp_path: Path) -> None:
    good, bad = write_image(tmp_path / "a.png", width=8, height=8), tmp_path / "gone.png"
    paths = [bad if number % 7 == 3 else good for number in range(CHUNK + 10)]
    seen: list[tuple[int, int]] = []

    checks = list(check_files(paths, **LIMITS, num_threads=4, progress=lambda *counts: seen.append(counts)))

    assert [check.fault is None for check in checks] == [path == good for path in paths]
    assert seen == [(CHUNK, CHUNK + 10), (CHUNK + 10, CHUNK + 10)]
