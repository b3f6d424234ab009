"""The written synthetic data set is VeRi-776's raw layout: the reader reads it, lists and indices agree, it is hard."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.make_synthetic import main
from reid.contracts import Record
from reid.data.synthetic import SyntheticConfig, draw_vehicle_image, write_synthetic_veri, written_config
from reid.data.veri776 import read_veri776

CONFIG = SyntheticConfig(seed=2, num_train_identities=5, num_test_identities=16, max_long_side=200)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    calls: list[tuple[int, int]] = []
    folder = write_synthetic_veri(
        tmp_path_factory.mktemp("synthetic") / "veri", CONFIG, lambda *done: calls.append(done)
    )
    assert calls == [(number, 210) for number in range(1, 211)]
    return folder


@pytest.fixture(scope="module")
def records(root: Path) -> list[Record]:
    return read_veri776(root)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_the_reader_of_veri_finds_every_image_with_everything_known_about_it(records: list[Record]) -> None:
    assert Counter(record.split for record in records) == {"train": 50, "gallery": 160, "query": 80}
    assert {record.vehicle_id for record in records if record.split == "train"} == {f"{n:04d}" for n in range(1, 6)}
    assert {record.vehicle_id for record in records if record.split == "gallery"} == {f"{n:04d}" for n in range(6, 22)}
    for record in records:
        assert record.keypoints is not None
        assert record.orientation in range(8)
        assert record.timestamp is not None
        assert record.mask_path is not None
        assert set(record.attributes) == {"colour", "type"}


def test_read_keypoints_images_and_masks_are_those_that_were_drawn(records: list[Record]) -> None:
    for record in records[::17]:
        shot = int(record.key.rsplit("_", 1)[1])
        assert record.camera_id is not None
        drawn = draw_vehicle_image(CONFIG, int(record.vehicle_id), int(record.camera_id[1:]), shot)
        assert record.keypoints is not None
        seen = drawn.keypoints[:, 2] > 0
        np.testing.assert_array_equal(record.keypoints[:, 2] > 0, seen)
        np.testing.assert_allclose(record.keypoints[seen, :2], np.maximum(drawn.keypoints[seen, :2], 0), atol=0.0501)
        assert record.orientation == drawn.orientation
        np.testing.assert_array_equal(cv2.imread(str(record.mask_path), cv2.IMREAD_GRAYSCALE), drawn.mask)
        stored = cv2.imread(str(record.path))[..., ::-1].astype(float)
        assert stored.shape == drawn.image.shape
        assert np.abs(stored - drawn.image).mean() < 9  # JPEG


def test_queries_are_gallery_images_one_of_each_vehicle_and_camera(root: Path, records: list[Record]) -> None:
    gallery = {record.key: record for record in records if record.split == "gallery"}
    queries = [record for record in records if record.split == "query"]
    for query in queries:
        assert query.path.read_bytes() == gallery[query.key].path.read_bytes()
    tracks = Counter((query.vehicle_id, query.camera_id) for query in queries)
    assert set(tracks.values()) == {1}
    assert set(tracks) == {(record.vehicle_id, record.camera_id) for record in gallery.values()}


def test_ground_truth_and_junk_positions_are_those_of_the_names(root: Path) -> None:
    gallery, queries = lines(root / "name_test.txt"), lines(root / "name_query.txt")
    for query, positive, junk in zip(queries, lines(root / "gt_index.txt"), lines(root / "jk_index.txt"), strict=True):
        vehicle, camera = query.split("_")[:2]
        same = [number for number, name in enumerate(gallery, 1) if name.startswith(vehicle)]
        expected_junk = [number for number in same if gallery[number - 1].split("_")[1] == camera]
        assert [int(number) for number in junk.split()] == expected_junk
        assert [int(number) for number in positive.split()] == [n for n in same if n not in expected_junk]
        assert len(positive.split()) == 8
    tracks = [name for line in lines(root / "test_track.txt") for name in line.split()]
    assert tracks == gallery


def test_keypoint_lines_have_42_fields(root: Path) -> None:
    for name, number in (("keypoint_train.txt", 50), ("keypoint_test.txt", 160)):
        fields = [line.split() for line in lines(root / name)]
        assert {len(line) for line in fields} == {42}
        assert len(fields) == number


def test_writing_again_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    small = CONFIG.model_copy(update={"num_train_identities": 1, "num_test_identities": 1})
    first, second = (write_synthetic_veri(tmp_path / name, small) for name in ("a", "b"))
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(names) == 2 * (10 + 10 + 5) + 13
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    train = names[[str(name).startswith("image_train") for name in names].index(True)]
    assert (first / train).read_bytes() == (root / train).read_bytes()


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=f"{tmp_path} is not empty"):
        write_synthetic_veri(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_no_data_set_and_does_not_disturb_the_next(tmp_path: Path) -> None:
    small = CONFIG.model_copy(update={"num_train_identities": 1, "num_test_identities": 1})

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic_veri(tmp_path / "veri", small, interrupt)
    assert not (tmp_path / "veri").exists()
    assert len(read_veri776(write_synthetic_veri(tmp_path / "veri", small))) == 25
    assert [path.name for path in tmp_path.iterdir()] == ["veri"]


def test_the_configuration_is_kept_beside_the_images(root: Path, tmp_path: Path) -> None:
    assert written_config(root) == CONFIG
    assert written_config(tmp_path) is None


def thumbnails(records: list[Record]) -> NDArray[np.float64]:
    rows = []
    for record in records:
        small = cv2.resize(cv2.imread(str(record.path)), (16, 16), interpolation=cv2.INTER_AREA).astype(np.float64)
        rows.append((small - small.mean((0, 1))).ravel())
    features = np.array(rows)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_thumbnails_do_not_find_the_vehicle_in_other_cameras(records: list[Record]) -> None:
    queries = [record for record in records if record.split == "query"]
    gallery = [record for record in records if record.split == "gallery"]
    similarity = thumbnails(queries) @ thumbnails(gallery).T
    first = []
    for row, query in zip(similarity, queries, strict=True):
        other_camera = np.array([record.camera_id != query.camera_id for record in gallery])
        best = gallery[int(np.argmax(np.where(other_camera, row, -2.0)))]
        first.append(best.vehicle_id == query.vehicle_id)
    assert 0.0 < np.mean(first) < 0.4


def test_the_job_draws_a_data_set_and_leaves_a_finished_one_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    command = ["make_synthetic.py", "--root", str(tmp_path / "veri")]
    sizes = ["--train-identities", "1", "--test-identities", "1", "--mark-scale", "1.5", "--images-per-camera", "1"]
    for expected in ("10 images = 5 train + 5 gallery", "already holds this data set"):
        monkeypatch.setattr(sys, "argv", [*command, *sizes])
        assert main() == 0
        assert expected in caplog.text
    config = written_config(tmp_path / "veri")
    assert config is not None
    assert (config.mark_scale, config.num_train_identities) == (1.5, 1)
    monkeypatch.setattr(sys, "argv", [*command, "--seed", "9"])
    assert main() == 2
    assert "is not empty" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["make_synthetic.py", "--root", str(tmp_path / "file" / "veri"), *sizes])
    assert main() == 2
    assert "file" in capsys.readouterr().err
