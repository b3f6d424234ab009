from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.evaluation.heat_map_peaks import find_peaks, fit_thresholds, peaks_to_raw, with_visibility
from tests.reference import heat_maps as reference


def test_quarter_cell_peaks_equal_the_loop_also_on_borders_and_ties() -> None:
    torch.manual_seed(0)
    maps = torch.rand(5, 20, 4, 6)
    maps[0] = torch.round(maps[0] * 3) / 3  # many equal cells
    actual = find_peaks(maps, "quarter")
    borders = 0
    for image in range(5):
        for number in range(20):
            expected = reference.quarter_peak(maps[image, number].numpy())
            borders += expected[0] in (0, 5) or expected[1] in (0, 3)
            assert actual[image, number].tolist() == pytest.approx(expected)
    assert borders > 10
    plain = find_peaks(maps, "none")
    assert torch.equal(plain[..., :2], plain[..., :2].round())
    assert not torch.equal(plain, actual)


def test_mass_is_the_sum_of_the_cells_around_the_peak_also_on_borders() -> None:
    torch.manual_seed(0)
    maps = torch.randn(4, 20, 9, 12)
    actual = find_peaks(maps, "none", "mass")
    assert torch.equal(actual[..., :2], find_peaks(maps, "none")[..., :2])
    for image in range(4):
        for number in range(20):
            expected = reference.mass_around_peak(maps[image, number].double().numpy(), 3)
            assert actual[image, number, 2].item() == pytest.approx(expected, abs=1e-5)
            assert abs(expected - reference.mass_around_peak(maps[image, number].double().numpy(), 2)) > 1e-4


def test_an_uncertain_place_lowers_the_peak_and_not_the_mass() -> None:
    places = ((60.0, 64.0), (64.0, 64.0), (68.0, 64.0))
    sharp, *others = (reference.gaussian_map(x, y, 32, 32, 4, 1.0) for x, y in places)
    uncertain = (sharp + sum(others)) / 3
    maps = torch.from_numpy(np.stack((sharp, uncertain)))[None]
    heights, masses = (find_peaks(maps, "none", score)[0, :, 2].tolist() for score in ("peak", "mass"))
    assert heights[1] < 0.8 * heights[0]
    assert masses == pytest.approx([1.0, 1.0], abs=0.02)


def test_taylor_refinement_finds_the_centre_of_any_gaussian_exactly() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform((6, 6), (42, 26), (20, 2))
    maps = np.stack([reference.gaussian_map(x, y, 8, 12, 4, 1.0) for x, y in points])
    expected = (points + 0.5) / 4 - 0.5
    actual = find_peaks(torch.from_numpy(maps * 0.7)[None], "taylor")[0].numpy()
    np.testing.assert_allclose(actual[:, :2], expected, atol=1e-3)
    quarter = find_peaks(torch.from_numpy(maps)[None], "quarter")[0].numpy()
    assert 0.05 < np.abs(quarter[:, :2] - expected).max() <= 0.2501


def test_taylor_leaves_cells_alone_that_have_no_maximum_around() -> None:
    flat = torch.zeros(1, 1, 5, 5)
    assert find_peaks(flat, "taylor").tolist() == [[[0, 0, 0]]]
    ridge = torch.zeros(1, 1, 5, 5)
    ridge[0, 0, 2] = 0.5
    ridge[0, 0, 2, 2] = 0.500001
    moved = find_peaks(ridge, "taylor")
    assert (moved[..., :2] - 2).abs().max() <= 1


def test_peaks_go_back_to_the_raw_image_by_pixel_centres() -> None:
    # A raw image of 30 x 60 (height x width), the map of 8 x 8: cell (0, 0) has its centre at (3.25, 1.375).
    peaks = np.zeros((1, 2, 3))
    peaks[0, 1] = (7, 7, 0.9)
    actual = peaks_to_raw(peaks, (8, 8), np.array([[30, 60]]))
    np.testing.assert_allclose(actual[0], [[3.25, 1.375, 0.0], [55.75, 27.625, 0.9]], rtol=1e-6)


def test_visible_points_keep_their_place_and_others_are_all_zero() -> None:
    peaks = np.array([[[5, 6, 0.31], [7, 8, 0.3]]])
    keypoints = with_visibility(peaks, np.array([0.3, 0.3]))
    assert keypoints.tolist() == [[[5, 6, 1], [0, 0, 0]]]


def test_fitted_thresholds_are_the_best_of_all_by_exhaustive_search() -> None:
    rng = np.random.default_rng(3)
    visible = rng.random((60, 20)) < 0.4
    heights = np.round(np.clip(rng.normal(0.2 + 0.3 * visible, 0.15), 0, 1), 2)
    visible[:, 4], visible[:, 5] = True, False
    actual = fit_thresholds(heights, visible, 0.3)
    assert actual[5] == 0.3
    assert actual[4] < heights[:, 4].min()

    def f1(number: int, threshold: float) -> float:
        shown = heights[:, number] > threshold
        return 2 * (shown & visible[:, number]).sum() / (shown.sum() + visible[:, number].sum())

    improved = 0
    for number in set(range(20)) - {5}:
        expected = f1(number, reference.best_threshold(heights[:, number], visible[:, number], 0.3))
        assert f1(number, actual[number]) == pytest.approx(expected)
        improved += expected > f1(number, 0.3)
    assert improved > 5


def test_the_default_stays_where_nothing_else_is_better() -> None:
    heights = np.array([[0.05], [0.1], [0.8], [0.9]])
    visible = np.array([[False], [False], [True], [True]])
    assert fit_thresholds(heights, visible, 0.3).tolist() == [0.3]
    assert fit_thresholds(heights / 4, visible, 0.3).tolist() == pytest.approx([(0.1 + 0.8) / 8])


def test_a_keypoint_that_every_image_shows_is_never_hidden() -> None:
    heights = np.array([[0.2], [0.4], [0.9]])
    assert fit_thresholds(heights, np.ones((3, 1), dtype=bool), 0.3).tolist() == [0.1]
    assert fit_thresholds(heights + 0.2, np.ones((3, 1), dtype=bool), 0.3).tolist() == [0.3]
    assert fit_thresholds(heights, np.zeros((3, 1), dtype=bool), 0.3).tolist() == [0.3]
