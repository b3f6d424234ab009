"""The version of the program tells apart what would compute differently."""

from __future__ import annotations

from pathlib import Path

import torch

from reid.build.code_version import code_version


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_version_follows_from_content_and_place_of_the_source_files(tmp_path: Path) -> None:
    files = {"a.py": "x = 1\n", "b/c.py": "y = 2\n"}
    version = code_version(write(tmp_path / "one", files))
    assert code_version(write(tmp_path / "two", files | {"notes.txt": "not source"})) == version
    variants = {
        "edited": {"a.py": "x = 2\n", "b/c.py": "y = 2\n"},
        "moved": {"a.py": "x = 1\n", "c.py": "y = 2\n"},
        "more": files | {"d.py": ""},
    }
    found = {code_version(write(tmp_path / name, content)) for name, content in variants.items()}
    assert len(found) == 3
    assert version not in found


def test_the_version_names_the_libraries() -> None:
    assert f"torch {torch.__version__}" in code_version()
