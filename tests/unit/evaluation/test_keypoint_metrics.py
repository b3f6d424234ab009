from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from reid.evaluation.keypoint_metrics import compare_planes, measure_keypoints, orientation_agreement
from reid.evaluation.orientation import orientation_of
from reid.keypoints import MIRROR_ORIENTATION, ORIENTATION_NAMES, mirror_order
from tests.reference import keypoint_metrics as reference


def example(count: int = 12, seed: int = 0) -> tuple[NDArray[np.float32], ...]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(40, 200, (count, 2))
    truth = np.zeros((count, 20, 3), np.float32)
    truth[..., :2] = rng.uniform(0, 40, (count, 20, 2))
    truth[..., 2] = rng.random((count, 20)) > 0.4
    truth[:, 7, 2] = 0  # never visible
    truth *= truth[..., 2:]
    places = truth[..., :2] + rng.normal(0, 8, (count, 20, 2)).astype(np.float32)
    said = np.where(rng.random((count, 20)) < 0.8, truth[..., 2] > 0, truth[..., 2] == 0)
    return places, said, truth, sizes


def known(figures: Sequence[float | None]) -> dict[int, float]:
    return {number: figure for number, figure in enumerate(figures) if figure is not None}


def test_figures_equal_the_point_by_point_reference() -> None:
    places, said, truth, sizes = example()
    actual = measure_keypoints(places, said, truth, sizes)
    expected_pck, expected_per_keypoint = reference.pck(places, truth, sizes)
    wrong_pck, _ = reference.pck(places, truth, sizes[:, [0, 0]])  # the height alone
    assert 0.3 < expected_pck < 0.95
    assert actual.pck == pytest.approx(expected_pck)
    assert actual.pck != pytest.approx(wrong_pck)
    assert known(actual.pck_per_keypoint) == pytest.approx(known(expected_per_keypoint))
    assert actual.pck_per_keypoint[7] is None
    errors, error, pixels = reference.mean_errors(places, truth, sizes)
    assert known(actual.mean_error_per_keypoint) == pytest.approx(known(errors), rel=1e-5)
    assert (actual.mean_error, actual.mean_error_pixels) == pytest.approx((error, pixels), rel=1e-5)
    visible = truth[..., 2] > 0
    assert actual.visibility_f1 == pytest.approx(reference.f1(said, visible))
    assert actual.visibility_f1_per_keypoint[3] == pytest.approx(reference.f1(said[:, 3], visible[:, 3]))
    assert actual.visibility_f1_per_keypoint[7] == 0  # only false alarms


def test_a_point_that_misses_by_exactly_a_tenth_counts_as_found() -> None:
    truth = np.zeros((1, 20, 3), np.float32)
    truth[0, 0] = (10, 10, 1)
    said, sizes = truth[..., 2] > 0, np.array([[50, 100]])
    for distance, expected in ((10.0, 1.0), (10.1, 0.0)):
        places = truth[..., :2].copy()
        places[0, 0, 0] += distance
        assert measure_keypoints(places, said, truth, sizes).pck == expected


def test_no_image_and_wrong_shapes_are_refused() -> None:
    places, said, truth, sizes = example()
    with pytest.raises(ValueError, match="no annotated image"):
        measure_keypoints(places[:0], said[:0], truth[:0], sizes[:0])
    with pytest.raises(ValueError, match=r"\(12, 20, 2\), \(12, 19, 3\)"):
        measure_keypoints(places, said, truth[:, :19], sizes)


def test_plane_agreement_counts_images_in_which_both_say_the_same() -> None:
    truth = np.array([[1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=bool)
    predicted = np.array([[1, 0, 0, 1], [0, 1, 1, 1], [1, 0, 0, 1]], dtype=bool)
    actual = compare_planes(predicted, truth)
    assert actual.agreement == pytest.approx({"front": 2 / 3, "back": 1.0, "side": 2 / 3, "top": 2 / 3})
    assert actual.true_rate["top"] == pytest.approx(2 / 3)
    assert actual.predicted_rate["top"] == 1.0
    assert actual.mean == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        compare_planes(predicted, truth[:2])


def seen(*numbers: int) -> NDArray[np.float32]:
    points = np.zeros((1, 20, 3), np.float32)
    for number in numbers:
        points[0, number - 1] = (5, 5, 1)
    return points


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((5, 6, 7, 8, 9, 10), "front"), ((17, 18, 19, 20), "rear"), ((1, 2, 11), "left"), ((3, 4), "right"),
        ((1, 2, 6, 8, 10), "left-front"), ((3, 4, 5, 7, 9), "right-front"), ((2, 17, 19), "left-rear"),
        ((4, 18, 20), "right-rear"),
    ],
)  # fmt: skip
def test_every_orientation_is_told_from_its_points_and_mirrors(numbers: tuple[int, ...], expected: str) -> None:
    code = ORIENTATION_NAMES.index(expected)
    assert orientation_of(seen(*numbers)).tolist() == [code]
    flipped = seen(*numbers)[:, np.array(mirror_order())]
    assert orientation_of(flipped).tolist() == [MIRROR_ORIENTATION[code]]


def test_an_image_without_points_has_no_orientation_and_agreement_leaves_unknown_ones_out() -> None:
    assert orientation_of(seen()).tolist() == [-1]
    assert orientation_agreement(np.array([1, 2, 3]), np.array([1, -1, 4])) == 0.5
    assert orientation_agreement(np.array([1]), np.array([-1])) is None
