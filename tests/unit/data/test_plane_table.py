"""Which planes of a vehicle a set of keypoints shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reid.data.keypoint_labels import read_keypoint_file
from reid.data.plane_table import count_planes, visible_planes
from reid.keypoints import MIRROR_PAIRS, PLANE_NAMES, PLANE_RULES, VERI_PLANE_RATES, VERI_SUBSTITUTION_GAINS, PlaneRule

VERI_FILE = Path(__file__).parents[3] / "../shared/data/veri776-keypoints/keypoint_test.txt"
SQUARE = ((0, 0), (10, 0), (10, 10), (0, 10))
"""Top-left, top-right, bottom-right, bottom-left; y down."""


def image(*points: Mapping[int, tuple[float, float]]) -> NDArray[np.float32]:
    """(N, 20, 3) keypoints, one image for each mapping from number to place."""
    keypoints = np.zeros((len(points), 20, 3), dtype=np.float32)
    for row, places in enumerate(points):
        for number, place in places.items():
            keypoints[row, number - 1] = (*place, 1)
    return keypoints


def place(corners: tuple[int, ...], square: tuple[tuple[float, float], ...] = SQUARE) -> dict[int, tuple[float, float]]:
    """The corners of a plane on a square."""
    return dict(zip(corners, square, strict=True))


@pytest.mark.parametrize("rule", PLANE_RULES, ids=lambda rule: f"{rule.plane} {rule.corners}")
def test_four_corners_that_face_the_camera_show_their_plane_only(rule: PlaneRule) -> None:
    table = count_planes(image(place(rule.corners)))

    assert table.visible == {plane: int(plane == rule.plane) for plane in PLANE_NAMES}
    assert table.substituted == dict.fromkeys(PLANE_NAMES, 0)


@pytest.mark.parametrize(
    "square",
    [
        (SQUARE[1], SQUARE[0], SQUARE[3], SQUARE[2]),
        (SQUARE[0], SQUARE[2], SQUARE[1], SQUARE[3]),
        ((0, 0), (10, 0), (3, 3), (0, 10)),
        ((0, 0), (5, 0), (10, 0), (0, 10)),
        ((4, 4), (4, 4), (4, 4), (4, 4)),
    ],
    ids=["from behind", "crossed", "dented", "straight", "one point"],
)
def test_corners_that_are_no_face_of_a_vehicle_show_nothing(square: tuple[tuple[float, float], ...]) -> None:
    assert count_planes(image(place((13, 14, 6, 5), square))).visible == dict.fromkeys(PLANE_NAMES, 0)


def test_the_substitute_stands_in_for_one_missing_bottom_corner_only() -> None:
    front = place((13, 14, 6, 5))
    plate = {10: (5.0, 11.0)}
    cases = [
        {number: point for number, point in front.items() if number not in missing} | plate
        for missing in ((5,), (6,), (5, 6), (13,), ())
    ]

    for case, (visible, substituted) in zip(cases, [(0, 1), (0, 1), (0, 0), (0, 0), (1, 0)], strict=True):
        table = count_planes(image(case))
        assert (table.visible["front"], table.substituted["front"]) == (visible, substituted)


def test_either_side_counts_once() -> None:
    both = place((14, 15, 2, 1)) | place((16, 13, 3, 4))

    assert count_planes(image(both, place((16, 13, 3, 4)), {})).visible["side"] == 2


def test_front_and_back_in_one_image_are_counted() -> None:
    table = count_planes(image(place((13, 14, 6, 5)) | place((15, 16, 18, 17)), place((13, 14, 6, 5))))

    assert table.front_and_back == 1


def test_rates_of_no_images_are_zero() -> None:
    table = count_planes(image())

    assert (table.num_images, table.rate("front"), table.gain("front")) == (0, 0.0, 0.0)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(20, 3\)"):
        count_planes(np.zeros((20, 3), dtype=np.float32))


def test_the_two_side_rules_mirror_each_other_with_the_front_at_the_same_end() -> None:
    partner = {a: b for pair in MIRROR_PAIRS for a, b in (pair, pair[::-1])}
    left, right = (dict(zip(rule.corners, rule.targets, strict=True)) for rule in PLANE_RULES if rule.plane == "side")

    assert {partner[number]: target for number, target in left.items()} == right
    assert left[14] == right[13] == "TL"


def test_substitutes_lie_on_the_symmetry_axis_and_bottom_corners_come_last() -> None:
    paired = {number for pair in MIRROR_PAIRS for number in pair}
    for rule in PLANE_RULES:
        assert rule.substitute is None or rule.substitute not in paired
        assert {target[0] for target in rule.targets[:2]} == {"T"}
        assert {target[0] for target in rule.targets[2:]} == {"B"}


@pytest.mark.skipif(not VERI_FILE.is_file(), reason="needs ../shared/data/veri776-keypoints")
def test_the_veri_gallery_annotation_has_the_known_rates() -> None:
    table = count_planes(read_keypoint_file(VERI_FILE).keypoints)

    assert table.num_images == 11_579
    assert table.front_and_back == 0
    for plane in PLANE_NAMES:
        # The known share of sides counts 11 images whose side is seen from within as visible: 65.8 against 65.7 %.
        assert table.rate(plane) == pytest.approx(VERI_PLANE_RATES[plane], abs=0.0011)
        assert table.gain(plane) == pytest.approx(VERI_SUBSTITUTION_GAINS.get(plane, 0.0), abs=0.0005)


def test_visible_planes_are_the_ones_that_the_table_counts() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (4000, 20, 3)).astype(np.float32)
    points[..., 2] = rng.random((4000, 20)) < 0.85
    table, planes = count_planes(points), visible_planes(points)
    assert planes.shape == (4000, 4)
    expected = {plane: table.visible[plane] + table.substituted[plane] for plane in ("front", "back", "side", "top")}
    assert min(expected.values()) > 20
    assert dict(zip(expected, planes.sum(axis=0).tolist(), strict=True)) == expected
