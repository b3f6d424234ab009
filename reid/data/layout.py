"""Finds the root folder of a raw data set under its usual spellings, and reads the plain files inside it.

People unpack the same archive as `VeRi`, `veri`, `VeRi-776`, `VehicleID_V1.0` ..., and configure the folder, its parent
or a folder inside it. A root is recognised by what it holds; names only decide between several candidates.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

IMAGE_ENDINGS: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
"""Files with these endings (in any case) are images; everything else in an image folder is ignored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the root folder of a data set looks like."""

    data_set: str
    """Name for people."""
    spellings: frozenset[str]
    """Usual names of the root, as `simplified` writes them."""
    required: tuple[str, ...]
    """Entries that must lie in the root, as `a/b` paths."""
    tree: str
    """The expected tree, shown when the data set is not found."""


def simplified(name: str) -> str:
    """A folder name without case and punctuation.

    >>> simplified("VehicleID_V1.0")
    'vehicleidv10'
    """
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def holds(folder: Path, layout: Layout) -> bool:
    """Whether everything that the layout requires lies in `folder`."""
    return all((folder / entry).exists() for entry in layout.required)


def resembles(folder: Path, layout: Layout) -> bool:
    """Whether `folder` is meant to be such a root: it has the name of one, or a part of what one holds."""
    return _is_spelling(folder, layout) or any((folder / entry).exists() for entry in layout.required)


def find_root(given: str | Path, layout: Layout) -> Path:
    """The root folder of a data set, from the folder itself, its parent, a folder inside it or another spelling.

    Order: the folder itself; its parent, when it is one of the required entries; folders up to two levels below it,
    well-named ones first; when `given` does not exist, a neighbour whose name is another spelling of the data set.

    Raises:
        ValueError: nothing fits (names what was expected, what was found and the whole tree), or several folders do.
    """
    folder = Path(given).expanduser()
    if holds(folder, layout):
        return folder
    if folder.name in layout.required and holds(folder.parent, layout):
        return folder.parent
    if folder.is_dir():
        below = _folders(folder)
        levels = [below, [inner for child in below if _is_spelling(child, layout) for inner in _folders(child)]]
    else:
        neighbours = _folders(folder.parent) if _is_spelling(folder, layout) else []
        levels = [[path for path in neighbours if _is_spelling(path, layout)]]
    for level in levels:
        fitting = [path for path in level if holds(path, layout)]
        chosen = [path for path in fitting if _is_spelling(path, layout)] or fitting
        if len(chosen) > 1:
            names = ", ".join(path.name for path in chosen)
            raise ValueError(f"{layout.data_set}: {folder} has several folders that fit ({names}); name one of them")
        if chosen:
            return chosen[0]
    raise ValueError(_not_found(folder, layout, [path for level in levels for path in level]))


def _is_spelling(path: Path, layout: Layout) -> bool:
    return simplified(path.name) in layout.spellings


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _not_found(folder: Path, layout: Layout, candidates: list[Path]) -> str:
    partial = [path for path in [folder, *candidates] if path.is_dir() and resembles(path, layout)]
    if partial:
        missing = [entry for entry in layout.required if not (partial[0] / entry).exists()]
        found = f"{partial[0]} lacks {', '.join(missing)}"
    elif not folder.exists():
        found = f"{folder} does not exist"
    else:
        inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        shown = ", ".join(inside[:8]) + (" ..." if len(inside) > 8 else "")
        found = f"{folder} holds {shown or 'nothing'}" if folder.is_dir() else f"{folder} is not a folder"
    return (
        f"{layout.data_set} not found: {found}. Expected the folder itself or its parent, with\n{layout.tree}\n"
        "Unpack the release there, or give the folder that holds this tree."
    )


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped; any line ending, UTF-8 with or without mark, else GB 18030.

    Raises:
        ValueError: the file is missing, unreadable, or in neither encoding.
    """
    text = read_text(path)
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 (with or without mark), else in GB 18030, which the Chinese releases use.

    Raises:
        ValueError: the file is missing, unreadable, or in neither encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); expected a text file there") from None
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path} is neither UTF-8 nor GB 18030 text; expected a plain list, found {data[:16]!r}")


def list_images(folder: Path) -> dict[str, Path]:
    """The images directly inside `folder` by file name, sorted by name; hidden and other files are left out."""
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS
        )
    return {name: folder / name for name in names}


def by_casefolded_name(images: dict[str, Path]) -> dict[str, Path]:
    """The same images by lower-case name and by lower-case stem, for lists that disagree with the disk about `.JPG`."""
    folded: dict[str, Path] = {}
    for name, path in images.items():
        folded.setdefault(name.casefold(), path)
        folded.setdefault(os.path.splitext(name)[0].casefold(), path)
    return folded
