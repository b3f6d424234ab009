"""Who queries whom, by protocol."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from reid.evaluation.protocols import (
    EvaluationConfig,
    check_positives,
    protocol_notes,
    protocol_trials,
    rows_of_trials,
)
from tests.unit.evaluation.small_sets import columns

SIZES = ("small", "medium", "large")


@pytest.fixture(scope="module")
def vehicleid():
    """Identities with 2..7 images in the test split; the small subset holds the first 10."""
    entries = [("train", "0", "", ())]
    for vehicle in range(30):
        subsets = SIZES[0 if vehicle < 10 else 1 if vehicle < 20 else 2 :]
        entries += [("test", str(vehicle), "", subsets)] * (2 + vehicle % 6)
    return columns(entries)


@pytest.fixture(scope="module")
def veriwild():
    return columns(
        [
            ("query", "a", "1", SIZES),
            ("query", "b", "2", ("large",)),
            ("gallery", "a", "2", SIZES),
            ("gallery", "b", "1", ("large",)),
        ]
    )


def test_vehicleid_draws_one_gallery_image_per_identity_and_queries_with_all_others(vehicleid):
    trials = protocol_trials("vehicleid-small", vehicleid)
    rows = vehicleid.rows("test", "small")
    assert len(trials) == 10
    for trial in trials:
        drawn = vehicleid.vehicle_id[trial.gallery_rows].tolist()
        assert sorted(drawn) == sorted(set(vehicleid.vehicle_id[rows]))
        assert sorted([*trial.gallery_rows, *trial.query_rows]) == rows.tolist()
        assert trial.is_drawn
        assert not trial.remove_junk


def test_vehicleid_trials_differ_and_repeat_exactly(vehicleid):
    first, again = (protocol_trials("vehicleid-large", vehicleid) for _ in range(2))
    assert all(np.array_equal(a.gallery_rows, b.gallery_rows) for a, b in zip(first, again, strict=True))
    assert len({tuple(trial.gallery_rows) for trial in first}) == 10


def test_a_seed_draws_the_same_whatever_the_number_of_trials(vehicleid):
    one, ten = protocol_trials("vehicleid-medium", vehicleid, 1), protocol_trials("vehicleid-medium", vehicleid, 10)
    assert len(one) == 1
    assert np.array_equal(one[0].gallery_rows, ten[0].gallery_rows)


def test_every_image_of_an_identity_can_be_drawn():
    index = columns([("test", "only", "", ("small",))] * 4)
    drawn = {int(trial.gallery_rows[0]) for trial in protocol_trials("vehicleid-small", index, 60)}
    assert drawn == {0, 1, 2, 3}


@pytest.mark.parametrize(("size", "num"), [("small", 1), ("medium", 1), ("large", 2)])
def test_veriwild_takes_the_size_and_removes_junk_unless_raw(veriwild, size, num):
    (trial,) = protocol_trials(f"veriwild-{size}", veriwild)
    (raw,) = protocol_trials(f"veriwild-{size}-raw", veriwild)
    assert len(trial.query_rows) == len(trial.gallery_rows) == num
    assert trial.remove_junk
    assert not raw.remove_junk
    assert np.array_equal(raw.query_rows, trial.query_rows)


def test_cross_camera_asks_each_camera_in_turn():
    entries = [
        (split, vehicle, camera, ()) for split in ("query", "gallery") for vehicle in "ab" for camera in ("c1", "c2")
    ]
    index = columns(entries)
    trials = protocol_trials("cross-camera", index)
    assert [trial.name for trial in trials] == ["c1", "c2"]
    for trial in trials:
        assert set(index.camera_id[trial.query_rows]) == {trial.name}
        assert trial.name not in set(index.camera_id[trial.gallery_rows])


def test_cross_camera_refuses_unknown_cameras():
    index = columns([("query", "a", "", ()), ("gallery", "a", "", ())])
    with pytest.raises(ValueError, match="needs known cameras"):
        protocol_trials("cross-camera", index)


def test_rows_of_trials_are_each_once(vehicleid):
    rows = rows_of_trials(protocol_trials("vehicleid-small", vehicleid))
    assert np.array_equal(rows, vehicleid.rows("test", "small"))


def test_missing_cameras_are_said():
    none = columns([("query", "a", "", ()), ("query", "b", "", ()), ("gallery", "a", "", ())])
    some = columns([("query", "a", "", ()), ("query", "b", "1", ()), ("gallery", "a", "2", ())])
    assert protocol_notes(protocol_trials("table", none), none) == ["camera unknown: scored without junk removal"]
    assert protocol_notes(protocol_trials("table", some), some) == [
        "camera unknown for 1 of 2 queries: no junk removed for these"
    ]
    assert protocol_notes(protocol_trials("veri776-raw", none), none) == []


def test_queries_that_find_themselves_are_said_where_nothing_takes_them_out():
    index = columns(
        [
            ("query", "a", "1", ()),
            ("query", "b", "", ()),
            ("query", "c", "3", ()),
            ("gallery", "a", "1", ()),
            ("gallery", "b", "", ()),
            ("gallery", "c", "4", ()),
            ("gallery", "a", "2", ()),
        ]
    )
    index.key[:] = ["1", "2", "3", "1", "2", "5", "6"]
    note = "queries have the key of a gallery image of their vehicle: they likely find themselves"
    assert f"1 {note}" in protocol_notes(protocol_trials("veri776", index), index)  # the one whose camera is unknown
    assert protocol_notes(protocol_trials("veri776-raw", index), index) == [f"2 {note}"]


@pytest.mark.parametrize(
    ("name", "nearest"), [("veri-776", "veri776"), ("VehicleID_small", "vehicleid-small"), ("veriwild-big", "veriwild")]
)
def test_unknown_protocols_are_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"got '{name}'; did you mean '{nearest}"):
        protocol_trials(name, columns([("query", "a", "", ())]))
    with pytest.raises(ValidationError, match=f"did you mean '{nearest}"):
        EvaluationConfig(protocol=name)


def test_missing_splits_and_subsets_are_named(veriwild, vehicleid):
    with pytest.raises(ValueError, match="protocol 'veri776' needs images in split 'query'"):
        protocol_trials("veri776", vehicleid)
    with pytest.raises(ValueError, match="protocol 'vehicleid-small': no image of split 'test' is in subset 'small'"):
        protocol_trials("vehicleid-small", veriwild)


@pytest.mark.parametrize(
    ("entries", "protocol", "finds"),
    [
        ([("query", "a", "1", ()), ("gallery", "a", "2", ())], "veri776", True),
        ([("query", "a", "1", ()), ("gallery", "b", "2", ())], "veri776-raw", False),  # another vehicle
        ([("query", "a", "1", ()), ("gallery", "a", "1", ()), ("gallery", "b", "2", ())], "veri776", False),  # junk
        ([("query", "a", "1", ()), ("gallery", "a", "1", ())], "veri776-raw", True),
        ([("query", "a", "", ()), ("gallery", "a", "", ())], "veri776", True),  # unknown cameras are no junk
        ([("query", "a", "1", ()), ("query", "b", "1", ()), ("gallery", "b", "2", ())], "veri776", True),
    ],
)
def test_a_protocol_under_which_nothing_can_be_found_is_refused(entries, protocol, finds):
    index = columns(entries)
    identities = np.unique(index.vehicle_id.astype(str), return_inverse=True)[1]
    cameras = np.array([int(camera or -1) for camera in index.camera_id])
    trials = protocol_trials(protocol, index)
    if finds:
        check_positives(protocol, trials, identities, cameras)
    else:
        with pytest.raises(
            ValueError, match=rf"protocol '{protocol}' .*: none of 1 queries has an image of its vehicle"
        ):
            check_positives(protocol, trials, identities, cameras)
