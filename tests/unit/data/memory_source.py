"""A data set in memory for the tests of plan and stream: real JPEG files and a real index, without shards on disk."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.data.index import Index, IndexRow, index_from_rows


class MemorySource:
    """Images as bytes; counts what is read."""

    def __init__(self, index: Index, files: list[bytes], masks: list[bytes | None]) -> None:
        self.index = index
        self.files = files
        self.masks = masks
        self.reads: list[int] = []

    def read_image(self, row: int) -> bytes:
        self.reads.append(row)
        return self.files[row]

    def read_mask(self, row: int) -> bytes | None:
        return self.masks[row]

    def take_retries(self) -> dict[str, int]:
        return {}


def make_source(
    images_per_vehicle: list[int],
    *,
    num_shards: int = 3,
    size: tuple[int, int] = (12, 16),
    num_gallery: int = 0,
    masks: bool = False,
    seed: int = 0,
) -> MemorySource:
    """Noise images of about (height, width) `size`; a vehicle's images are in one shard, gallery rows at the end."""
    generator = np.random.default_rng(seed)
    rows, files, mask_files = [], [], []
    vehicles = [vehicle for vehicle, count in enumerate(images_per_vehicle) for _ in range(count)]
    for number, vehicle in enumerate(vehicles + [0] * num_gallery):
        height, width = size[0] + number % 3, size[1] + number % 2
        keypoints = np.zeros((20, 3), dtype=np.float32)
        keypoints[:, 0] = generator.uniform(0, width - 1, 20)
        keypoints[:, 1] = generator.uniform(0, height - 1, 20)
        keypoints[:, 2] = generator.integers(0, 2, 20)
        rows.append(
            IndexRow(
                key=f"image-{number:05d}",
                split="train" if number < len(vehicles) else "gallery",
                vehicle_id=f"{vehicle:04d}",
                shard=vehicle * num_shards // len(images_per_vehicle),
                mask_size=1 if masks else -1,
                width=width,
                height=height,
                keypoints=keypoints if number % 5 else None,
            )
        )
        files.append(encode(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)))
        blob = np.zeros((height, width), dtype=np.uint8)
        blob[height // 4 :, : width // 2] = 255
        mask_files.append(cv2.imencode(".png", blob)[1].tobytes() if masks else None)
    return MemorySource(index_from_rows(rows), files, mask_files)


def encode(pixels: NDArray[np.uint8], ending: str = ".jpg") -> bytes:
    """RGB pixels as an image file."""
    return cv2.imencode(ending, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
