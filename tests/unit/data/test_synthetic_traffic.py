"""Traffic around a synthetic vehicle: placed where it should be, hiding little, changing nothing about the vehicle."""

from __future__ import annotations

import numpy as np
import pytest

from reid.data.synthetic_bodies import build_mesh
from reid.data.synthetic_cameras import look_at, make_passage
from reid.data.synthetic_images import SyntheticConfig, build_camera, build_vehicle, draw_vehicle_image
from reid.data.synthetic_traffic import Place, draw_places, stand

QUIET = SyntheticConfig(seed=7, num_train_identities=12, num_test_identities=8, obstacles=0.0)
FULL = QUIET.model_copy(update={"traffic": 1.0})


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("along", "queued"), [(2.5, False), (1.5, True), (-1.5, True)])
def test_a_neighbour_is_seen_where_its_points_in_the_vehicles_frame_are(
    turned: bool, along: float, queued: bool
) -> None:
    vehicle, other = build_vehicle(QUIET, 1), build_vehicle(QUIET, 9)
    shape = other.style.shape
    mesh = build_mesh(shape, ())
    view = look_at(35.0, 18.0, 20.0, 0.7, 2.0)
    passage = make_passage(build_camera(QUIET, 2), np.random.default_rng(0), np.random.default_rng(1))
    place = Place(along=along, across=-3.0, turned=turned, queued=queued)
    neighbour = stand(place, shape, mesh, other.atlas, vehicle.style.shape, view, passage)

    middle = along + np.sign(along) * (vehicle.style.shape.half + shape.half) if queued else along
    flip = np.array([-1.0, -1.0, 1.0]) if turned else np.ones(3)
    there = mesh.vertices * flip + [middle, -3.0, 0.0]
    np.testing.assert_allclose(neighbour.projection.pixels(mesh.vertices), view.pixels(there), atol=1e-9)
    np.testing.assert_allclose(neighbour.passage.light * flip, passage.light)
    if queued:  # free road between bumper and bumper
        ends = np.abs(there[:, 0])
        assert ends.min() - vehicle.style.shape.half == pytest.approx(abs(along), abs=0.1)


def test_the_density_is_the_share_of_places_that_are_taken() -> None:
    generator = np.random.default_rng(0)
    for density in (0.0, 0.3, 1.0):
        counts = [len(draw_places(density, generator)) for _ in range(500)]
        assert np.mean(counts) == pytest.approx(4 * density, abs=0.15)


def test_traffic_changes_surroundings_and_leaves_the_vehicle_alone() -> None:
    changed = nearer = 0
    for identity in range(1, 11):
        for camera in range(1, 7):
            quiet, full = (draw_vehicle_image(config, identity, camera, 0) for config in (QUIET, FULL))
            assert full.image.shape == quiet.image.shape
            assert full.orientation == quiet.orientation
            np.testing.assert_array_equal(full.keypoints[:, :2], quiet.keypoints[:, :2])
            assert (full.keypoints[:, 2] <= quiet.keypoints[:, 2]).all()
            there, before = full.mask > 0, quiet.mask > 0
            assert not (there & ~before).any()
            assert there.sum() > 0.8 * before.sum()
            difference = np.abs(full.image.astype(int) - quiet.image.astype(int)).max(-1)
            changed += (difference[~before] > 25).mean() > 0.1
            nearer += there.sum() < before.sum()
            assert (difference[there] > 25).mean() < 0.05  # blur at the edge
    assert changed > 30
    assert 3 < nearer < 40


def test_less_traffic_is_a_part_of_more() -> None:
    found = 0
    for seed in range(20):
        some, all_four = (draw_places(density, np.random.default_rng(seed)) for density in (0.4, 1.0))
        assert len(all_four) == 4
        assert some == [place for place in all_four if place in some]
        found += len(some)
    assert 16 < found < 48
