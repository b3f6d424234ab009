"""The doctor: what it finds, and what it lets pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.check_data import main
from reid.contracts import Record
from reid.data.doctor import DoctorConfig, check_keypoint_files, check_records, check_survey
from reid.data.doctor_report import DoctorReport
from reid.data.real_vehicles import survey_real_vehicles
from reid.data.shards import PackConfig, pack_shards
from reid.data.vehicleid import survey_vehicleid
from reid.data.veri776 import survey_veri776
from tests.unit.data.raw_layouts import (
    VERI_TEST,
    VERI_TRAIN,
    counted,
    keypoint_line,
    write_image,
    write_lines,
    write_real_vehicles,
    write_vehicleid,
    write_veri,
)

SHARED = Path(__file__).parents[3] / "../shared/data"
VERI_FILE = SHARED / "veri776-keypoints/keypoint_test.txt"


def errors(report: DoctorReport) -> dict[str, int]:
    """Kind -> count of what forbids training."""
    return counted(finding for finding in report.findings if finding.severity == "error")


def records(folder: Path) -> list[Record]:
    """Two training vehicles and two tested ones, two cameras each, freshly drawn."""
    splits = (("train", "1"), ("train", "2"), ("query", "3"), ("gallery", "3"), ("query", "4"), ("gallery", "4"))
    return [
        Record(
            key=f"{vehicle}_{camera}",
            path=write_image(folder / split / f"{vehicle}_{camera}.jpg"),
            split=split,  # type: ignore[arg-type]
            vehicle_id=vehicle,
            camera_id=camera,
        )
        for split, vehicle in splits
        for camera in ("a", "b")
    ]


def test_a_healthy_data_set_is_clean(tmp_path: Path) -> None:
    report = check_records(records(tmp_path))

    assert report.exit_code == 0
    assert report.findings == ()
    assert [(count.split, count.images, count.identities, count.cameras) for count in report.counts] == [
        ("train", 4, 2, 2),
        ("query", 4, 2, 2),
        ("gallery", 4, 2, 2),
    ]
    assert report.images is not None
    assert (report.images.checked, report.images.total, report.images.faults) == (12, 12, {})
    assert (report.images.shortest_side, report.images.longest_side) == (30, 40)
    assert report.keypoints is None


def test_counts_stand_beside_the_published_ones_size_by_size(tmp_path: Path) -> None:
    report = check_survey(survey_vehicleid(write_vehicleid(tmp_path)))

    counts = [(count.subset, count.images, count.published_images) for count in report.counts]
    assert counts == [(None, 4, 113_346), ("small", 2, 6_493), ("medium", 4, 13_377), ("large", 6, 19_777)]
    assert counted(report.findings)["published-count"] == 4
    assert report.exit_code == 0


def test_vehicles_in_train_and_test_forbid_training_unless_allowed(tmp_path: Path) -> None:
    given = records(tmp_path)
    given[0] = replace(given[0], vehicle_id="4")

    report = check_records(given)

    assert errors(report) == {"identity-overlap": 1}
    assert report.exit_code == 1
    assert "(4)" in str(report.findings[0])
    allowed = check_records(given, DoctorConfig(allow_overlap=True))
    assert allowed.exit_code == 0
    assert counted(allowed.findings)["identity-overlap"] == 1


def test_names_shared_within_a_split_forbid_training(tmp_path: Path) -> None:
    given = records(tmp_path)
    given[1] = replace(given[1], key=given[0].key)
    given[2] = replace(given[2], key="a.b")

    assert errors(check_records(given)) == {"duplicate-name": 1, "unparsed-name": 1}


def test_a_few_unusable_images_are_tolerated_and_more_forbid_training(tmp_path: Path) -> None:
    given = records(tmp_path)
    given[0].path.write_bytes(b"<html>")
    given[1].path.write_bytes(given[1].path.read_bytes()[:-100])

    strict, lenient = (check_records(given, DoctorConfig(max_unusable_share=share)) for share in (0.16, 0.17))

    assert errors(strict) == {"image-unreadable": 1, "image-truncated": 1}
    assert errors(lenient) == {}
    assert counted(lenient.findings) == {"image-unreadable": 1, "image-truncated": 1}
    assert strict.images is not None
    assert strict.images.faults == {"image_unreadable": 1, "image_truncated": 1}


def test_what_is_unusable_is_what_packing_skips(tmp_path: Path) -> None:
    given = records(tmp_path)
    for number, side in enumerate((6, 7, 8, 15)):
        write_image(given[number].path, width=side)
    report = check_records(given, DoctorConfig(max_unusable_share=1))
    manifest = pack_shards(given, tmp_path / "set", PackConfig(max_bad_fraction=1))
    assert report.images is not None
    assert report.images.faults == manifest.skipped == {"image_too_small": 2}


def test_a_sample_opens_so_many_files_and_is_the_same_again(tmp_path: Path) -> None:
    given = records(tmp_path)
    seen: list[tuple[int, int]] = []

    report = check_records(given, DoctorConfig(max_images=5), lambda *counts: seen.append(counts))

    assert report.images is not None
    assert (report.images.checked, report.images.total) == (5, 12)
    assert seen == [(5, 5)]
    assert report == check_records(given, DoctorConfig(max_images=5))
    assert check_records(given, DoctorConfig(max_images=0)).images is None


def test_queries_that_would_find_themselves_are_warned_about(tmp_path: Path) -> None:
    given = records(tmp_path)
    query = next(record for record in given if record.split == "query")
    copy = replace(query, split="gallery")
    assert "query-in-gallery" not in counted(check_records([*given, copy]).findings)  # junk, as in VeRi-776
    unknown = [replace(record, camera_id=None) for record in (query, copy)]
    rest = [record for record in given if record is not query]
    assert counted(check_records([*rest, *unknown]).findings)["query-in-gallery"] == 1


def test_queries_without_an_answer_and_images_without_a_camera_are_warned_about(tmp_path: Path) -> None:
    given = records(tmp_path)
    given = [record for record in given if not (record.split == "gallery" and record.key == "3_b")]
    given[1] = replace(given[1], camera_id=None)

    report = check_records(given)

    assert counted(report.findings) == {"query-without-match": 1, "no-camera": 1}
    assert report.exit_code == 0


def test_a_data_set_that_cannot_train_or_be_scored_is_warned_about(tmp_path: Path) -> None:
    given = [record for record in records(tmp_path) if record.split == "query"]

    assert counted(check_records(given).findings) == {"no-counterpart": 1, "few-identities": 1}
    assert errors(check_records([])) == {"no-images": 1}


def test_copies_under_another_name_are_found_and_queries_in_the_gallery_are_not(tmp_path: Path) -> None:
    given = records(tmp_path)
    given[3].path.write_bytes(given[0].path.read_bytes())  # another training vehicle's picture
    given[5].path.write_bytes(given[4].path.read_bytes())  # the same vehicle's, another name
    given[6].path.write_bytes(given[4].path.read_bytes())

    messages = [str(finding) for finding in check_records(given).findings]

    assert messages == [
        "1 x file that is a copy of another vehicle's: one label is wrong (1_a = 2_b)",
        "1 x file that is a copy of another of the same vehicle (3_a = 3_a)",
    ]
    assert check_records([*records(tmp_path / "fresh")]).findings == ()


def test_keypoints_outside_their_image_are_counted(tmp_path: Path) -> None:
    root = write_veri(tmp_path)
    points = {1: (41.0, 10.0), 2: (60.0, 10.0), 3: (5.0, 5.0)}
    lines = [keypoint_line(VERI_TRAIN[0], points=points)] + [keypoint_line(name, points={}) for name in VERI_TRAIN[1:]]
    write_lines(root / "keypoint_train.txt", lines)

    report = check_survey(survey_veri776(root))

    assert report.images is not None
    assert (report.images.points_clipped, report.images.points_outside) == (1, 1)
    found = counted(report.findings)
    assert (found["keypoints-outside"], found["keypoints-clipped"], found["keypoints-all-invisible"]) == (1, 1, 2)
    assert report.keypoints is not None
    assert report.keypoints.planes.num_images == 6


def test_masks_must_open_and_fit_their_image(tmp_path: Path) -> None:
    root = write_veri(tmp_path, masks=True)
    assert errors(check_survey(survey_veri776(root))) == {}

    masks = root / "mask_test"
    write_image(masks / VERI_TEST[0].replace(".jpg", ".png"), width=10)
    (masks / VERI_TEST[1].replace(".jpg", ".png")).write_bytes(b"")

    assert errors(check_survey(survey_veri776(root))) == {"mask-size": 1, "mask-unreadable": 1}


def test_errors_of_the_reader_are_errors_of_the_report(tmp_path: Path) -> None:
    root = write_veri(tmp_path)
    (root / "image_train" / VERI_TRAIN[0]).unlink()

    assert errors(check_survey(survey_veri776(root))) == {"missing-image": 1}


def test_orientations_against_the_visible_points_are_noted(tmp_path: Path) -> None:
    front, rear = {5: (1, 1), 6: (2, 2)}, {17: (1, 1)}
    cases = [(front, 0), (rear, 0), (front, 7), (rear, 7), ({1: (1, 1)}, 5), ({3: (1, 1)}, 5), ({}, 3), (rear, -1)]
    lines = [keypoint_line(f"{n}.jpg", points=points, orientation=code) for n, (points, code) in enumerate(cases)]

    report = check_keypoint_files([write_lines(tmp_path / "k.txt", lines)])

    found = [finding for finding in report.findings if finding.kind == "orientation-contradiction"]
    assert [finding.examples for finding in found] == [("1", "2", "4")]


def test_keypoints_in_another_order_are_suspected(tmp_path: Path) -> None:
    lines = [keypoint_line("a.jpg", points={number: (number, number) for number in range(1, 21)})]

    report = check_keypoint_files([write_lines(tmp_path / "k.txt", lines)])

    assert counted(report.findings)["no-planes"] == 1


def test_the_report_is_valid_json_with_the_plane_shares(tmp_path: Path) -> None:
    report = check_survey(survey_veri776(write_veri(tmp_path)))

    document = json.loads(report.to_json())

    assert document["exit_code"] == 0
    assert document["counts"][0]["published_images"] == 37_778
    assert document["keypoints"]["lines"]["distinct"] == 6
    assert document["keypoints"]["planes"]["rates"]["front"]["veri_rate"] == 0.426


def test_the_text_shows_every_block(tmp_path: Path) -> None:
    text = check_survey(survey_veri776(write_veri(tmp_path))).to_text()

    for part in (
        "37,778 !=",
        "opened all 8 files, 8 usable",
        "6 lines, 6 distinct",
        "front",
        "warnings",
        "fit for use",
    ):
        assert part in text


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of the job."""
    monkeypatch.setattr("sys.argv", ["check_data.py", *map(str, arguments)])
    return main()


def test_the_job_prints_the_report_and_ends_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_real_vehicles(tmp_path / "real-vehicles")
    assert run(monkeypatch, tmp_path, "--json", tmp_path / "report.json") == 0
    assert "verdict: fit for use" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["data_set"] == "real-vehicles"

    write_lines(root / "val.txt", (root / "train.txt").read_text().split()[:2])
    assert run(monkeypatch, root) == 1
    assert "car_0000" in capsys.readouterr().out.split("ERRORS")[1]
    assert run(monkeypatch, root, "--allow-overlap") == 0


def test_the_job_names_what_it_cannot_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        [tmp_path / "gone"],
        [tmp_path],
        [tmp_path, "--format", "veriwild"],
        [tmp_path, "--max-images", -1],
        [tmp_path, "--json", tmp_path / "gone" / "report.json"],
    ):
        assert run(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert said
        assert "pydantic" not in said


@pytest.mark.parametrize("options", [["--keypoints", "elsewhere"], ["--max-images", 3], ["--allow-overlap"]])
def test_options_about_images_are_refused_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[object]
) -> None:
    path = write_lines(tmp_path / "keypoint_test.txt", [keypoint_line("0001_c001_1.jpg", points={1: (2, 3)})])
    assert run(monkeypatch, path) == 0
    assert run(monkeypatch, path, *options) == 2
    assert f"{options[0]} does nothing where only keypoint files are checked" in capsys.readouterr().err


@pytest.mark.skipif(not VERI_FILE.is_file(), reason="needs ../shared/data/veri776-keypoints")
@pytest.mark.parametrize("path", [VERI_FILE, VERI_FILE.parent], ids=["file", "folder"])
def test_the_job_reads_the_published_annotation_without_images(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, path) == 0

    text = capsys.readouterr().out
    for part in ("12,079 lines, 11,579 distinct", "500 x keypoint line that repeats", "front and back at once: 0"):
        assert part in text


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/real-vehicles")
def test_the_shared_photographs_are_fit_for_use() -> None:
    report = check_survey(survey_real_vehicles(SHARED / "real-vehicles"))

    assert report.exit_code == 0
    assert report.images is not None
    assert (report.images.checked, report.images.faults, report.images.points_outside) == (1014, {}, 0)
    assert all(count.as_published for count in report.counts)
    assert report.keypoints is not None
    assert np.isclose(report.keypoints.planes.rate("back"), 247 / 250)
