"""Opens the image files of a raw data set, many at a time, with the judgement that packing them will have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reid.data.decode import UnreadableImageError
from reid.data.image_source import read_source_image
from reid.progress import Progress

CHUNK: Final = 256
"""Files handed to the threads at a time, so that a large data set does not queue up in memory."""


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What is known of one image file."""

    fault: str | None
    """Why it cannot be used, such as "image_truncated" (see `read_source_image`); None: usable."""
    width: int = 0
    """Of the upright image, pixels: keypoints refer to it. 0 when unusable."""
    height: int = 0
    repairs: tuple[str, ...] = ()
    """Oddities that packing tolerates or mends, such as "mismatched_extension"."""
    digest: bytes = b""
    """Of the image's bytes: equal for copies."""


def check_file(path: Path, *, min_side: int, max_pixels: int) -> FileCheck:
    """Reads and decodes one image file; the size limits apply to its header, before decoding.

    Args:
        path: The file.
        min_side: Shortest side that is usable, pixels.
        max_pixels: Most pixels that are decoded: a small file can declare billions.
    """
    try:
        image = read_source_image(path, min_side=min_side, max_pixels=max_pixels, max_side=None, jpeg_quality=95)
    except UnreadableImageError as error:
        return FileCheck(error.reason)
    digest = hashlib.blake2b(image.data, digest_size=16).digest()
    return FileCheck(None, image.source_width, image.source_height, image.repairs, digest)


def check_files(
    paths: Sequence[Path], *, min_side: int, max_pixels: int, num_threads: int, progress: Progress | None = None
) -> Iterator[FileCheck]:
    """`check_file` of every path, in order, on several threads.

    Args:
        paths: Image files.
        min_side: As `check_file` has it.
        max_pixels: As `check_file` has it.
        num_threads: Files opened at the same time; reading overlaps, decoding is one at a time (the decoder's
            complaints are listened to), so threads help most on slow storage.
        progress: Called now and then and at the end.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="check-file") as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            yield from pool.map(lambda path: check_file(path, min_side=min_side, max_pixels=max_pixels), chunk)
            if progress is not None:
                progress(start + len(chunk), len(paths))
