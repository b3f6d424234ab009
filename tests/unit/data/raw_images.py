"""Small raw data sets on disk for the tests of packing: real JPEG files and the records that name them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from reid.contracts import Record, Split
from reid.data.shards import PackConfig

SMALL = PackConfig(name="small", min_train_shards=3, min_evaluation_shards=1)


def encoded_noise(seed: int, width: int = 24, height: int = 18, ending: str = ".jpg") -> bytes:
    """An image file in memory."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return bytes(cv2.imencode(ending, pixels)[1])


def draw_records(root: Path, counts: dict[Split, list[int]] | None = None, masks: bool = False) -> list[Record]:
    """Records of noise images below `root`: for each split, the number of images of each vehicle.

    Vehicles of query and gallery are the same; every third image has no keypoints, every fifth no camera.
    """
    root.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    for split, images in (counts or {"train": [3, 2, 4, 1], "query": [1, 1], "gallery": [2, 1]}).items():
        for vehicle, count in enumerate(images):
            for shot in range(count):
                number = len(records)
                key = f"{split}_{vehicle:04d}_{shot}"
                path = root / f"{key}.jpg"
                path.write_bytes(encoded_noise(number))
                mask_path = root / f"{key}_mask.png" if masks else None
                if mask_path is not None:
                    mask = np.zeros((18, 24), dtype=np.uint8)
                    mask[4:12, 5:20] = 255
                    cv2.imwrite(str(mask_path), mask)
                keypoints = np.zeros((20, 3), dtype=np.float32)
                keypoints[number % 20] = (3.25, 4.5, 1.0)
                records.append(
                    Record(
                        key=key,
                        path=path,
                        split=split,
                        vehicle_id=f"{vehicle if split == 'train' else 100 + vehicle:04d}",
                        camera_id=None if number % 5 == 4 else f"c{number % 2}",
                        timestamp=f"{number:08d}",
                        keypoints=None if number % 3 == 2 else keypoints,
                        orientation=None if number % 3 == 2 else number % 8,
                        subsets=("small", "large") if split != "train" and vehicle == 0 else (),
                        attributes={"colour": "red"},
                        mask_path=mask_path,
                    )
                )
    return records
