"""The tars of shards: written the same every time, read by a strict walk that opens nothing it does not know.

WebDataset and `tarfile` take a damaged header for the end of the archive, and WebDataset's default decoders execute
pickled members; here checksums are required, and members are told by their endings from an allow-list.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from reid.data.shard_plan import KEY_PATTERN

IMAGE_ENDINGS: Final = ("jpg", "jpeg", "png", "bmp", "webp")
SAFE_ENDINGS: Final = (*IMAGE_ENDINGS, "json", "mask.png", "boxes.json")
"""What may follow the key of a member; readers run code for `.pyd`, `.pkl`, `.pickle`, `.pth` and others."""
_BLOCK: Final = 512
_KINDS: Final = {
    b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe",
    b"x": "extended header", b"g": "extended header", b"K": "long link",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar."""

    name: str
    kind: str
    """"file", or what else it is."""
    offset: int
    """Of the first data byte."""
    size: int


class TarWriter:
    """Appends members to a tar, hashing, and tells where their data begin. The same members give the same bytes."""

    def __init__(self, file: BinaryIO):
        self.file, self.position, self.digest = file, 0, hashlib.sha256()

    def add(self, name: str, data: bytes | memoryview) -> int:
        """Appends a file and returns the position of its first byte."""
        header = tarfile.TarInfo(name)  # mode 0644, no clock, no owner
        header.size = len(data)
        self._write(header.tobuf(tarfile.GNU_FORMAT))
        offset = self.position
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return offset

    def finish(self) -> None:
        """Ends the archive."""
        self._write(bytes(2 * _BLOCK))

    def _write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.position += len(data)


Note = Callable[[str, str], None]
"""Takes the kind of a problem and its detail."""


def collect_samples(content: Any, note: Note) -> dict[str, dict[str, Member]]:
    """Key -> ending -> member, of everything that is safe to look at."""
    samples: dict[str, dict[str, Member]] = {}
    previous = ""
    try:
        for member in walk_tar(content):
            key, _, ending = member.name.partition(".")
            if member.kind != "file":
                note("unsafe_member", f"{member.name!r} is a {member.kind}")
            elif KEY_PATTERN.fullmatch(key) is None:
                kind = "unsafe_member" if "/" in member.name or "\\" in member.name else "bad_name"
                note(kind, f"{member.name!r} is not a key of letters, digits, _ and - with an ending")
            elif ending.lower() not in SAFE_ENDINGS:
                note("unsafe_member", f"{member.name!r}: ending {ending!r} is not one of {', '.join(SAFE_ENDINGS)}")
            elif ending in samples.setdefault(key, {}):
                note("duplicate_key", f"member {member.name!r} is there twice")
            else:
                if samples[key] and key != previous:
                    note("duplicate_key", f"the members of {key!r} are apart: stream readers see two samples")
                samples[key][ending] = member
                previous = key
    except ValueError as error:
        note("bad_tar", str(error))
    return samples


def image_of(parts: dict[str, Member]) -> Member | None:
    """The image among the members of a sample."""
    return next((parts[ending] for ending in IMAGE_ENDINGS if ending in parts), None)


def walk_tar(content: Any) -> Iterator[Member]:
    """The members of a tar in memory, in order: POSIX headers, and GNU's for names above 100 characters.

    Stricter than `tarfile`, which takes a damaged header for the end of the archive: checksums, sizes, and two empty
    blocks at the end with nothing but zeros behind them are required.

    Raises:
        ValueError: with the byte position, after the members before it were yielded.
    """
    position, long_name = 0, None
    while True:
        header = bytes(content[position : position + _BLOCK])
        if len(header) < _BLOCK:
            raise ValueError(f"cut at byte {len(content)}: no end of archive")
        if header == bytes(_BLOCK):
            break
        try:
            checksum = int(header[148:156].rstrip(b"\0 "), 8)
            size = int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError:
            raise ValueError(f"no tar header at byte {position}") from None
        if checksum != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            raise ValueError(f"tar header at byte {position} has a wrong checksum")
        start, kind = position + _BLOCK, header[156:157]
        position = start + size + -size % _BLOCK
        if start + size > len(content):
            raise ValueError(f"cut at byte {len(content)}: the member at {start - _BLOCK} has {size} bytes")
        if kind == b"L":
            long_name = bytes(content[start : start + size]).rstrip(b"\0")
            continue
        prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
        short_name = (prefix + b"/" if prefix else b"") + header[:100].partition(b"\0")[0]
        name = (short_name if long_name is None else long_name).decode("utf-8", errors="backslashreplace")
        long_name = None
        yield Member(
            name, "file" if kind in {b"0", b"\0"} else _KINDS.get(kind, f"member of type {kind!r}"), start, size
        )
    rest = bytes(content[position:])
    if len(rest) < 2 * _BLOCK or rest.strip(b"\0"):
        raise ValueError(f"the archive ends at byte {position} of {len(content)}, not with two or more empty blocks")
