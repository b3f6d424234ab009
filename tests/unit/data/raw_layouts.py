"""Tiny raw data sets on disk, in the layouts of the releases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from reid.data.survey import Finding

VERI_TRAIN = ("0001_c001_00000010_0.jpg", "0001_c002_00000020_0.jpg", "0002_c001_00000030_0.jpg")
VERI_TEST = ("0770_c001_00000040_0.jpg", "0770_c003_00000050_0.jpg", "0771_c002_00000060_1.jpg")


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """Kind -> how often it was found."""
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + finding.count
    return counts


def write_image(path: Path, *, width: int = 40, height: int = 30, seed: int | None = None) -> Path:
    """A small picture; every path gets another one unless `seed` is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = sum(str(path).encode()) + len(str(path)) * 1000 if seed is None else seed
    noise = np.random.default_rng([number, *path.name.encode()] if seed is None else seed)
    pixels = noise.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_lines(path: Path, lines: Iterable[str], *, ending: str = "\n") -> Path:
    """A text file; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + ending for line in lines).encode())
    return path


def keypoint_line(name: str, *, points: Mapping[int, tuple[float, float]], orientation: int = 1) -> str:
    """A line of a keypoint file in which only `points` (by number) are visible."""
    pairs = [points.get(number, (-1, -1)) for number in range(1, 21)]
    return f"{name} {' '.join(f'{x} {y}' for x, y in pairs)} {orientation}"


def write_veri(root: Path, *, lists: bool = True, keypoints: bool = True, masks: bool = False) -> Path:
    """VeRi-776: 3 training images of 2 vehicles, 3 gallery images of 2, the first and last of them also queries."""
    folders = {"train": VERI_TRAIN, "query": (VERI_TEST[0], VERI_TEST[2]), "test": VERI_TEST}
    for folder, names in folders.items():
        for name in names:
            write_image(root / f"image_{folder}" / name)
            if masks:
                mask = np.zeros((30, 40), dtype=np.uint8)
                (root / f"mask_{folder}").mkdir(exist_ok=True)
                assert cv2.imwrite(str(root / f"mask_{folder}" / name.replace(".jpg", ".png")), mask)
        if lists:
            write_lines(root / f"name_{folder}.txt", names)
    if keypoints:
        train = [keypoint_line(f"VeRi/image_train/{name}", points={1: (3, 4)}, orientation=2) for name in VERI_TRAIN]
        test = [keypoint_line(f"VeRi/image_test/{name}", points={15: (5, 6)}) for name in VERI_TEST]
        write_lines(root / "keypoint_train.txt", train)
        write_lines(root / "keypoint_test.txt", test)
    return root


def write_vehicleid(root: Path, *, sizes: Iterable[int] = (800, 1600, 2400)) -> Path:
    """VehicleID: vehicles 1 and 2 train, 11 is small, 12 medium, 13 large (nested lists), two images each."""
    lists = {"train_list": ("1", "2"), "test_list_800": ("11",), "test_list_1600": ("11", "12")}
    lists["test_list_2400"] = ("11", "12", "13")
    wanted = {"train_list", *(f"test_list_{size}" for size in sizes)}
    for name, vehicles in lists.items():
        images = [(f"{int(vehicle):05}{shot}", vehicle) for vehicle in vehicles for shot in (0, 1)]
        for image, _ in images:
            write_image(root / "image" / f"{image}.jpg")
        if name in wanted:
            write_lines(root / "train_test_split" / f"{name}.txt", [f"{image} {vehicle}" for image, vehicle in images])
    return root


def write_veriwild(root: Path, *, dialect: str = "old", header: bool = True) -> Path:
    """VERI-Wild: vehicles 00001 and 00002 train, 00011 is small, 00012 medium, 00013 large; cameras 1, 2, 3."""

    def entry(vehicle: str, shot: int) -> str:
        image = f"{vehicle}/{int(vehicle):05}{shot}"
        return image if dialect == "old" else f"{image}.jpg {int(vehicle)} {shot}"

    lists: dict[str, list[str]] = {"train_list": [entry(v, shot) for v in ("00001", "00002") for shot in (1, 2)]}
    for number, vehicles in ((3000, ("00011",)), (5000, ("00011", "00012")), (10000, ("00011", "00012", "00013"))):
        lists[f"test_{number}_query"] = [entry(vehicle, 1) for vehicle in vehicles]
        lists[f"test_{number}"] = [entry(vehicle, shot) for vehicle in vehicles for shot in (2, 3)]
    for name, lines in lists.items():
        write_lines(root / "train_test_split" / f"{name}.txt", lines)
    info = ["id/image;Camera ID;Time;Model;Type;Color"] if header else []
    for vehicle in ("00001", "00002", "00011", "00012", "00013"):
        for shot in (1, 2, 3):
            image = f"{vehicle}/{int(vehicle):05}{shot}"
            write_image(root / "images" / f"{image}.jpg")
            info.append(f"{image};{shot};2018-03-11 06:0{shot}:00;大众;suv;white")
    write_lines(root / "train_test_split" / "vehicle_info.txt", info)
    return root


def write_real_vehicles(root: Path, *, num_train: int = 3, num_val: int = 2) -> Path:
    """real-vehicles: cars and trucks in turn, two cameras each; the first training car has a keypoint line."""
    names = [f"{('car', 'truck')[number % 2]}_{number:04}" for number in range(num_train + num_val)]
    for name in names:
        for camera in (1, 2):
            write_image(root / "images" / f"{name}_cam{camera}.jpg")
    for path, vehicles in (("train.txt", names[:num_train]), ("val.txt", names[num_train:])):
        write_lines(root / path, [f"{name}_cam{camera}.jpg" for name in vehicles for camera in (1, 2)])
    write_lines(root / "keypoints.txt", [keypoint_line("images/car_0000_cam1.jpg", points={15: (5, 6)}, orientation=7)])
    return root
