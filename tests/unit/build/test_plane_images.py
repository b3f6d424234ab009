"""Plane images: the plane's own pixels, upright, of exactly the images that show it, in a whole set of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.build.plane_images import (
    NoPlaneError,
    PlaneImageConfig,
    make_plane_set,
    plane_pixels,
    rows_in_source,
)
from reid.contracts import DataError
from reid.data.decode import decode_image
from reid.data.shard_set import open_shards
from reid.data.shards import pack_shards
from reid.data.staging import ShardResult, ShardWork
from reid.data.verify import verify_shards
from reid.keypoints import PLANE_NAMES
from reid.models.perspective import PlaneConfig, find_planes
from reid.storage import Location
from tests.reference import homography as reference
from tests.synthetic_shards import pack_synthetic, small_config
from tests.unit.data.raw_images import SMALL, draw_records
from tests.unit.data.test_shards import content_of

SMALL_IMAGES = PlaneImageConfig(height=20, width=24)


def front_at(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Keypoints of a front whose outline is a rectangle of the image, corners between pixels."""
    keypoints = np.zeros((20, 3), np.float32)
    for number, (x, y) in zip(
        (13, 14, 6, 5), ((left, top), (right, top), (right, bottom), (left, bottom)), strict=True
    ):
        keypoints[number - 1] = (x, y, 1)
    return keypoints


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_plane_that_fills_whole_pixels_is_cut_out_unchanged() -> None:
    """Its edges are those of pixels, 12 to 36 and 8 to 28, that is, half a pixel before the first centre."""
    image = noise(40, 50)
    config = PlaneImageConfig(height=20, width=24)
    actual = plane_pixels(image, front_at(11.5, 7.5, 35.5, 27.5), "front", config)
    np.testing.assert_array_equal(actual, image[8:28, 12:36])
    shifted = plane_pixels(image, front_at(12, 8, 36, 28), "front", config)
    assert np.abs(shifted.astype(int) - image[8:28, 12:36]).mean() > 10  # half a pixel off shows


def test_a_plane_twice_as_large_is_the_mean_of_its_pixels() -> None:
    image = noise(40, 48)
    actual = plane_pixels(image, front_at(-0.5, -0.5, 47.5, 39.5), "front", SMALL_IMAGES)
    means = image.reshape(20, 2, 24, 2, 3).mean((1, 3))
    np.testing.assert_allclose(actual, means, atol=0.51)
    once = plane_pixels(
        image, front_at(-0.5, -0.5, 47.5, 39.5), "front", SMALL_IMAGES.model_copy(update={"max_samples": 1})
    )
    np.testing.assert_allclose(once, means, atol=0.51)  # the middle of four pixels is their mean, too
    four = noise(80, 96)
    expected = four.reshape(20, 4, 24, 4, 3).mean((1, 3))
    corners = front_at(-0.5, -0.5, 95.5, 79.5)
    np.testing.assert_allclose(plane_pixels(four, corners, "front", SMALL_IMAGES), expected, atol=0.51)
    aliased = plane_pixels(four, corners, "front", SMALL_IMAGES.model_copy(update={"max_samples": 1}))
    assert np.abs(aliased - expected).mean() > 10


def test_planes_in_perspective_are_those_of_a_loop_over_pixels() -> None:
    image = noise(40, 60, seed=1)
    keypoints = np.zeros((20, 3), np.float32)
    for number, x, y in ((14, 8, 5), (15, 50, 9), (2, 52, 33), (1, 6, 36), (16, 46, 1), (13, 12, -3)):
        keypoints[number - 1] = (x, y, 1)
    config = PlaneImageConfig(height=18, width=26, max_samples=1)
    for plane in ("side", "top"):
        found = reference.find_plane(keypoints.astype(np.float64), plane, 40, 60, 0.004, 0.05)
        corners, targets = found
        matrix = reference.homography(targets, corners)
        maps = image.transpose(2, 0, 1).astype(np.float64)
        expected = reference.warp(maps, matrix, 40, 60, 18, 26).transpose(1, 2, 0)
        actual = plane_pixels(image, keypoints, plane, config)
        np.testing.assert_allclose(actual, expected, atol=0.51)
        wrong = reference.warp(maps, matrix, 40, 60, 18, 26, transposed=True).transpose(1, 2, 0)
        assert np.abs(wrong - expected).mean() > 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_synthetic(tmp_path_factory.mktemp("vehicles"), small_config(6, 3, 3), "vehicles")


def test_the_set_holds_every_image_that_shows_the_plane(tmp_path: Path, source: Path) -> None:
    before = content_of(source)
    for plane in ("front", "side"):
        manifest = make_plane_set(source, tmp_path / plane, plane, SMALL_IMAGES)
        assert verify_shards(tmp_path / plane, decode=True).problems == ()
        with open_shards(source) as old, open_shards(tmp_path / plane) as new:
            shown = [
                row
                for row in range(len(old))
                if find_planes(
                    torch.from_numpy(old.index.keypoints[[row]]), old.index.height[row], old.index.width[row],
                    PlaneConfig(),
                ).visible[0, PLANE_NAMES.index(plane)]
            ]  # fmt: skip
            rows = rows_in_source(old.index, new.index)
            assert rows.tolist() == shown
            assert 0 < len(shown) < len(old)
            for name in ("key", "split", "vehicle_id", "camera_id", "timestamp"):
                np.testing.assert_array_equal(getattr(new.index, name), getattr(old.index, name)[rows], err_msg=name)
            assert not new.index.has_keypoints.any()
            for row in range(0, len(new), 7):
                image = decode_image(old.read_image(rows[row]))
                expected = plane_pixels(image, old.index.keypoints[rows[row]], plane, SMALL_IMAGES)
                stored = decode_image(new.read_image(row))
                assert stored.shape == (20, 24, 3)
                assert np.abs(stored.astype(int) - expected).mean() < 12  # what JPEG makes of it
            (addition,) = manifest.additions
            assert (addition.name, addition.source_hash) == (f"plane-images-{plane}", old.manifest.hash)
            assert addition.members == {"image": len(shown)}
            assert sum(addition.problems.values()) == len(old) - len(shown)
            assert addition.settings["height"] == 20
    assert content_of(source) == before


def shuffled_in_processes(tasks: Sequence[object], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, tasks[::-1], repeat(folder))


def test_the_set_is_the_same_for_any_number_of_processes_and_found_again(tmp_path: Path, source: Path) -> None:
    expected = make_plane_set(source, tmp_path / "one", "top", SMALL_IMAGES)
    actual = make_plane_set(source, tmp_path / "two", "top", SMALL_IMAGES, run_tasks=shuffled_in_processes)
    assert actual == expected
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")

    def refuse(tasks: Sequence[object], folder: Location, work: ShardWork) -> Iterator[ShardResult]:
        raise AssertionError("the set is there")

    assert make_plane_set(source, tmp_path / "one", "top", SMALL_IMAGES, run_tasks=refuse) == expected
    larger = SMALL_IMAGES.model_copy(update={"height": 22})
    with pytest.raises(ValueError, match="another shard set"):
        make_plane_set(source, tmp_path / "one", "top", larger)
    with pytest.raises(ValueError, match="inside it"):
        make_plane_set(source, source / "planes", "top", SMALL_IMAGES)


def test_identities_without_an_image_drop_out(tmp_path: Path) -> None:
    """Noise images with one keypoint each, but for two vehicles that get a front."""
    records = draw_records(tmp_path / "raw")
    for record in records:
        if record.vehicle_id in ("0001", "0003", "0100") and record.keypoints is not None:
            record.keypoints[:] = front_at(4, 3, 18, 14)
    pack_shards(records, tmp_path / "set", SMALL)
    config = PlaneImageConfig(height=8, width=8)
    manifest = make_plane_set(tmp_path / "set", tmp_path / "front", "front", config)
    fronts = [r for r in records if r.vehicle_id in ("0001", "0003", "0100") and r.keypoints is not None]
    assert manifest.labels == tuple(sorted({r.vehicle_id for r in fronts if r.split == "train"}))
    assert manifest.num_images == len(fronts) < len(records)
    annotated = sum(record.keypoints is not None for record in records)
    assert manifest.additions[-1].problems == {
        "not_annotated": len(records) - annotated,
        "plane_not_shown": annotated - len(fronts),
    }
    assert verify_shards(tmp_path / "front", decode=True).problems == ()
    with open_shards(tmp_path / "front") as shards:
        train = shards.index.rows("train")
        assert sorted(set(shards.index.label[train].tolist())) == list(range(manifest.num_classes))
    with pytest.raises(NoPlaneError, match="shows the back"):
        make_plane_set(tmp_path / "set", tmp_path / "back", "back", config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front", "raw", "set"]
    with pytest.raises(DataError, match="nothing-here"):
        make_plane_set(tmp_path / "nothing-here", tmp_path / "back", "back", config)
    with open_shards(tmp_path / "front") as planes, pytest.raises(ValueError, match="another data set"):
        rows_in_source(planes.index.take(np.arange(1)), planes.index)
