"""Patches on queries: a function of seed, key and severity; nested; of the severity's area; the same in every batch."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from reid.contracts import DataError
from reid.data.decode import decode_image
from reid.data.enrichment import enrich_shards
from reid.data.index import Index
from reid.data.loader import LoaderConfig
from reid.data.occluded_queries import OccludedQueries, occlusion_of, of_clean_images
from reid.data.occlusion import ASPECT, OcclusionConfig, draw_patch, occlude, patch_table, write_patches
from reid.data.shard_set import open_shards
from reid.data.shards import pack_shards
from reid.data.stream import EvalStream
from reid.data.transforms import TransformConfig
from reid.data.verify import verify_shards
from tests.unit.data.memory_source import MemorySource, make_source
from tests.unit.data.raw_images import SMALL, draw_records

SEVERITIES = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.45, 0.7, 0.95)
KEYS = [f"vehicle_{number:04d}" for number in range(400)]


def covered(key: str, severity: float, size: tuple[int, int] = (90, 120), seed: int = 0) -> NDArray[np.bool_]:
    """Which pixels of a black image a patch changes; patches as dark as that are not among the keys."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    occlude(image, key, OcclusionConfig(severity=severity, seed=seed))
    return np.asarray(image.any(axis=2), dtype=np.bool_)


def test_a_patch_is_known_by_seed_and_key_on_every_machine() -> None:
    patch = draw_patch("0001_c001_00016450_0", 0)
    assert patch.colour == (110, 164, 92)
    assert patch.box(0.2, 200, 100) == (52, 2, 148, 44)
    assert draw_patch("0001_c001_00016450_0", 1) != patch
    assert draw_patch("0001_c001_00016450_1", 0) != patch


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_patch_is_one_rectangle_inside_the_image_of_the_severitys_area(severity: float) -> None:
    shares = []
    for key in KEYS[:100]:
        width, height = 90 + len(shares), 120
        left, top, right, bottom = draw_patch(key, 3).box(severity, width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        # both sides are rounded by half a pixel at the most, whether or not the aspect had to give way
        area, across, down = severity * width * height, right - left, bottom - top
        assert (across - 0.5) * (down - 0.5) <= area * (1 + 1e-9)
        assert area <= (across + 0.5) * (down + 0.5) * (1 + 1e-9)
        shares.append(across * down / (width * height))
    assert abs(np.mean(shares) - severity) < 0.01 * severity + 0.001
    mask = covered(KEYS[0], severity)
    left, top, right, bottom = draw_patch(KEYS[0], 0).box(severity, 120, 90)
    expected = np.zeros((90, 120), dtype=np.bool_)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("size", [(8, 8), (13, 300), (90, 120)])
def test_a_larger_severity_covers_what_a_smaller_one_does(size: tuple[int, int]) -> None:
    severities = [*np.linspace(0.001, 0.999, 200).tolist()]
    for key in KEYS[:40]:
        patch = draw_patch(key, 0)
        boxes = [patch.box(severity, size[1], size[0]) for severity in severities]
        for (left, top, right, bottom), (l2, t2, r2, b2) in pairwise(boxes):
            assert l2 <= left
            assert t2 <= top
            assert right <= r2
            assert bottom <= b2
        assert len(set(boxes)) > 5


def test_places_aspects_and_colours_are_spread_evenly() -> None:
    patches = [draw_patch(key, 0) for key in KEYS]
    logarithms = np.log([patch.aspect for patch in patches]) / np.log(ASPECT[1] / ASPECT[0])
    uniform = [
        np.array([patch.across for patch in patches]),
        np.array([patch.down for patch in patches]),
        logarithms - np.log(ASPECT[0]) / np.log(ASPECT[1] / ASPECT[0]),
        *(np.array([patch.colour[channel] for patch in patches]) / 256 for channel in range(3)),
    ]
    for values in uniform:
        assert (values >= 0).all()
        assert (values < 1).all()
        counts = np.histogram(values, bins=8, range=(0, 1))[0]
        # 50 expected in each of 8 bins: a chi-squared of 24.3 is exceeded once in a thousand
        assert ((counts - 50) ** 2 / 50).sum() < 24.3
    correlations = np.corrcoef(uniform) - np.eye(len(uniform))
    assert np.abs(correlations).max() < 0.2


@pytest.mark.parametrize("severity", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_severities_outside_the_unit_interval_are_refused(severity: float) -> None:
    with pytest.raises(ValidationError, match="severity"):
        OcclusionConfig(severity=severity)


def batches_of(
    source: MemorySource, occlusion: OcclusionConfig | None, batch_size: int, **loader: object
) -> torch.Tensor:
    rows = np.arange(len(source.index))[::-1].copy()
    config = LoaderConfig.model_validate(loader)
    stream = EvalStream(source, rows, TransformConfig(height=16, width=16), config, batch_size, occlusion=occlusion)
    try:
        batches = list(stream)
    finally:
        stream.close()
    images = torch.cat([batch.images for batch in batches])
    return images[torch.cat([batch.samples for batch in batches]).argsort()]


def test_occluded_batches_do_not_depend_on_batch_size_order_or_processes() -> None:
    source = make_source([3, 2, 4], size=(30, 40))
    occlusion = OcclusionConfig(severity=0.2, seed=5)
    expected = batches_of(source, occlusion, 4)
    for actual in (batches_of(source, occlusion, 1), batches_of(source, occlusion, 9, processes=2)):
        assert torch.equal(actual, expected)
    assert not torch.equal(batches_of(source, OcclusionConfig(severity=0.2, seed=6), 4), expected)
    clean = batches_of(source, None, 4)
    changed = (clean != expected).any(dim=1).float().mean(dim=(1, 2))
    assert (changed > 0.1).all()
    assert (changed < 0.45).all()


def test_networks_of_any_input_size_see_the_same_scene() -> None:
    source = make_source([1], size=(60, 80))
    raw = decode_image(source.read_image(0))
    occlude(raw, source.index.key[0], OcclusionConfig(severity=0.3))
    for size in (16, 60):
        stream = EvalStream(
            source, [0], TransformConfig(height=size, width=size), LoaderConfig(), 1,
            occlusion=OcclusionConfig(severity=0.3),
        )  # fmt: skip
        patch = draw_patch(source.index.key[0], 0)
        left, top, right, bottom = patch.box(0.3, raw.shape[1], raw.shape[0])
        x, y = (left + right) / 2 / raw.shape[1], (top + bottom) / 2 / raw.shape[0]
        pixel = next(iter(stream)).images[0, :, int(y * size), int(x * size)]
        assert tuple(pixel.tolist()) == patch.colour


def test_the_table_of_patches_paints_the_same_images(tmp_path: Path) -> None:
    source = make_source([3, 2], size=(30, 40))
    config = OcclusionConfig(severity=0.25, seed=2)
    table = patch_table(source.index, np.array([4, 0, 2]), config)
    assert [row[0] for row in table.rows] == ["image-00000", "image-00002", "image-00004"]
    assert table == patch_table(source.index, np.array([0, 2, 4]), config)
    assert table.sha256 != patch_table(source.index, np.array([0, 2]), config).sha256
    assert abs(table.covered() - 0.25) < 0.01
    write_patches([("a", table)], tmp_path / "patches.csv")
    write_patches([("a", table)], tmp_path / "patches.json")
    with open(tmp_path / "patches.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    stored = json.loads((tmp_path / "patches.json").read_text())
    assert stored[0]["patches_sha256"] == table.sha256
    for number, row, same in zip((0, 2, 4), rows, stored[0]["patches"], strict=True):
        assert {name: str(value) for name, value in same.items()}.items() <= row.items()
        expected = decode_image(source.read_image(number))
        actual = expected.copy()
        occlude(expected, source.index.key[number], config)
        left, top, right, bottom = (int(row[name]) for name in ("left", "top", "right", "bottom"))
        actual[top:bottom, left:right] = tuple(bytes.fromhex(row["colour"][1:]))
        np.testing.assert_array_equal(actual, expected)
    with pytest.raises(ValueError, match=r"patches\.txt: expected a name that ends in \.csv or \.json"):
        write_patches([("a", table)], tmp_path / "patches.txt")


def clean_index(index: Index) -> dict[str, object]:
    moved = {"image_offset", "image_size", "mask_offset", "mask_size"}
    return {name: values.tolist() for name, values in index.columns().items() if name not in moved}


def test_an_occluded_set_holds_the_patches_on_its_queries_and_everything_else_as_it_was(tmp_path: Path) -> None:
    pack_shards(draw_records(tmp_path / "raw", masks=True), tmp_path / "clean", SMALL)
    config = OcclusionConfig(severity=0.3, seed=4)
    with open_shards(tmp_path / "clean") as clean:
        queries = OccludedQueries(clean, config)
        manifest = enrich_shards(tmp_path / "clean", tmp_path / "occluded", queries)
        assert verify_shards(tmp_path / "occluded", decode=True).problems == ()
        assert occlusion_of(manifest) == config
        assert occlusion_of(clean.manifest) is None
        assert manifest.additions[-1].members == {"image": 2}
        assert manifest.additions[-1].settings["patches_sha256"] == queries.patches.sha256
        with open_shards(tmp_path / "occluded") as occluded:
            assert clean_index(occluded.index) == clean_index(clean.index)
            for row in range(len(clean)):
                if clean.index.split[row] != "query":
                    assert occluded.read_image(row) == clean.read_image(row)
                    continue
                expected = decode_image(clean.read_image(row))
                occlude(expected, clean.index.key[row], config)
                np.testing.assert_array_equal(decode_image(occluded.read_image(row)), expected)
            with pytest.raises(DataError, match=r"has queries 30 % occluded already"):
                OccludedQueries(occluded, config)


def test_a_set_without_queries_cannot_be_made_an_occluded_one(tmp_path: Path) -> None:
    records = draw_records(tmp_path / "raw", {"train": [2, 2], "test": [2, 2]})
    pack_shards(records, tmp_path / "clean", SMALL.model_copy(update={"allow_overlap": True}))
    with open_shards(tmp_path / "clean") as clean, pytest.raises(DataError, match=r"evaluate\.py --occluded"):
        OccludedQueries(clean, OcclusionConfig(severity=0.2))


@pytest.mark.parametrize(
    ("additions", "uses_stripes", "stale"),
    [
        (["coarse-masks", "parts"], False, []),
        (["coarse-masks", "parts", "occluded-queries", "parts"], False, []),
        (["coarse-masks", "parts", "occluded-queries", "coarse-masks"], False, ["part boxes"]),
        (["coarse-masks", "parts", "occluded-queries", "coarse-masks"], True, []),
        (["coarse-masks", "parts", "occluded-queries", "coarse-masks", "stripes"], False, []),
        (["coarse-masks", "stripes", "occluded-queries"], False, ["masks"]),
        (["occluded-queries"], False, ["masks"]),
    ],
)
def test_masks_and_boxes_from_before_the_occlusion_are_of_the_clean_images(
    additions: list[str], uses_stripes: bool, stale: list[str]
) -> None:
    assert of_clean_images(additions, uses_stripes=uses_stripes) == stale
