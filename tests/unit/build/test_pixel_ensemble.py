"""The ensemble's figures from five runs' checkpoints: those of a loop over pairs of images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reid.build.data import open_data
from reid.build.evaluation import evaluation_trials
from reid.build.pixel_ensemble import (
    GLOBAL,
    PART_WEIGHTS,
    EnsembleEvaluation,
    PartNetwork,
    describe_networks,
    embed_here,
    evaluate_pixel_ensemble,
)
from reid.build.plane_images import PlaneImageConfig, make_plane_set, rows_in_source
from reid.build.plane_pictures import picture_of_plane_sets
from reid.build.run_folder import open_run
from reid.config import Experiment, load_experiment
from reid.data.shard_set import open_shards
from reid.evaluation.results import results_table
from reid.training.checkpoint import CheckpointStore
from tests.reference import ensemble as reference
from tests.reference import ranking as reference_ranking
from tests.synthetic_shards import pack_synthetic, small_config
from tests.training_runs import train


def tiny(name: str, shards: Path, runs: Path) -> Experiment:
    return load_experiment(
        None,
        [
            f"name={name}", f"runs={runs}", f"data.shards={shards}", "model.planes=null",
            "model.backbone.name=resnet18", "data.transform.height=16", "data.transform.width=16",
            "data.transform.padding=1", "data.plan.identities_per_batch=2", "data.plan.images_per_identity=2",
            "training.step.precision=float32", "training.loop.epochs=1", "evaluation.every_epochs=1",
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[PartNetwork]:
    """A network of whole images and two of planes, a step old."""
    folder = tmp_path_factory.mktemp("ensemble")
    sets = {GLOBAL: pack_synthetic(folder, small_config(4, 4, 3), "vehicles")}
    for plane in ("side", "top"):
        sets[plane] = folder / plane
        make_plane_set(sets[GLOBAL], sets[plane], plane, PlaneImageConfig(height=16, width=16))
    found = []
    for part, shards in sets.items():
        run = tiny(part, shards, folder / "runs")
        train(run, stop_after=1)
        checkpoints = open_run(run).checkpoints
        name = CheckpointStore(checkpoints).newest()
        assert name is not None
        found.append(
            PartNetwork(part=part, weight=PART_WEIGHTS[part], experiment=run, checkpoint=checkpoints.child(name))
        )
    return found


def test_figures_are_those_of_a_loop_over_pairs(networks: list[PartNetwork]) -> None:
    whole = networks[0].experiment
    with open_data(whole) as shards:
        index = shards.index
        (trial,) = evaluation_trials(whole, shards)
    features: list[dict[int, np.ndarray]] = []
    for network in networks:
        with open_shards(network.experiment.data.shards) as shards:
            rows = np.arange(len(shards))
            in_source = rows_in_source(index, shards.index) if network.part != GLOBAL else rows
        embedded = embed_here(network.experiment, network.checkpoint, rows)
        features.append(dict(zip(in_source[embedded.samples].tolist(), embedded.features, strict=True)))
    weights = [network.weight for network in networks]
    distances = np.array(
        [
            [
                reference.distance([known.get(q) for known in features], [known.get(g) for known in features], weights)
                for g in trial.gallery_rows.tolist()
            ]
            for q in trial.query_rows.tolist()
        ]
    )
    vehicles, cameras = index.identity_codes(), index.camera_codes()
    expected = reference_ranking.figures(
        reference_ranking.ranks_of_positives(
            distances, vehicles[trial.query_rows], cameras[trial.query_rows], vehicles[trial.gallery_rows],
            cameras[trial.gallery_rows], True,
        )
    )  # fmt: skip
    actual = evaluate_pixel_ensemble(networks, name="tiny", notes=["without a network of the back: none"])
    assert 0 < expected["mAP"] < 1
    assert actual.result.metrics.mAP == pytest.approx(expected["mAP"], abs=1e-9)
    assert actual.result.metrics.cmc == pytest.approx(expected["cmc"])
    assert [result.name for result in actual.alone] == ["tiny global", "tiny side", "tiny top"]
    assert actual.alone[0].metrics.num_queries == len(trial.query_rows)
    shown = sum(row in features[1] for row in trial.query_rows.tolist())
    assert actual.alone[1].metrics.num_queries == shown < len(trial.query_rows)
    (about, left_out) = actual.result.notes[-2:]
    assert "weights global 10, side 2 (on" in about
    assert left_out == "without a network of the back: none"
    assert "tiny ensemble" in results_table([*actual.alone, actual.result])
    assert EnsembleEvaluation.from_json(json.loads(json.dumps(actual.to_json()))) == actual


def test_other_networks_or_settings_are_described_differently(networks: list[PartNetwork]) -> None:
    about = describe_networks(networks)
    assert about == json.loads(json.dumps(about))
    assert about["weights"] == {"global": 10.0, "side": 2.0, "top": 1.0}
    assert len(set(about["checkpoints"].values())) == 3
    assert describe_networks(networks[:2]) != about


def test_a_set_of_other_images_is_refused(networks: list[PartNetwork]) -> None:
    whole, side, _ = networks
    with pytest.raises(ValueError, match=r"data\.shards=.*not made of the set"):
        evaluate_pixel_ensemble([whole, replace(side, experiment=whole.experiment)])
    with pytest.raises(ValueError, match="global network first"):
        evaluate_pixel_ensemble([side, whole])


def test_the_picture_shows_images_beside_their_planes(networks: list[PartNetwork]) -> None:
    with (
        open_shards(networks[0].experiment.data.shards) as source,
        open_shards(networks[1].experiment.data.shards) as side,
    ):
        one = picture_of_plane_sets(source, {"side": side}, count=1)
        four = picture_of_plane_sets(source, {"side": side}, count=4)
    assert four.shape[0] > one.shape[0]
    assert four.shape[1] > one.shape[1] > 2 * 144
    assert four.std() > 10
