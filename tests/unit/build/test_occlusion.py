"""Occluded queries without Ray: clean galleries, embedded once; the figures of a set on disk; the jobs and files."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jobs import evaluate, make_occluded
from reid.build.data import open_data
from reid.build.evaluation import embed_rows, evaluate_here, evaluation_trials, load_trained_model
from reid.build.occlusion import SeverityResult, evaluate_occluded_here, evaluate_severities, parse_severities
from reid.build.run_folder import open_run
from reid.config import Experiment, load_experiment, with_overrides
from reid.contracts import DataError, Embeddings
from reid.data.enrichment import enrich_shards
from reid.data.occluded_queries import OccludedQueries
from reid.data.occlusion import OcclusionConfig
from reid.data.readers import DatasetConfig, read_dataset
from reid.data.shard_set import open_shards
from reid.data.shards import PackConfig, pack_shards
from reid.evaluation.results import RetrievalResult, results_table
from reid.evaluation.trials import evaluate_trials
from reid.storage import Location
from reid.training.checkpoint import CheckpointStore
from tests.synthetic_shards import pack_synthetic, small_config
from tests.training_runs import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen synthetic vehicles, raw and packed."""
    folder = tmp_path_factory.mktemp("occlusion")
    pack_synthetic(folder, small_config(6, 6, 3), "six")
    return folder


@pytest.fixture(scope="module")
def experiment(folder: Path) -> Experiment:
    experiment = load_experiment(
        None,
        [
            "name=small", f"runs={folder / 'runs'}", f"data.shards={folder / 'shards'}", "model.planes=null",
            "data.transform.height=32", "data.transform.width=32", "data.transform.padding=2",
            "data.plan.identities_per_batch=3", "data.plan.images_per_identity=2", "model.backbone.name=resnet18",
            "model.backbone.weights=null", "training.step.precision=float32", "training.loop.epochs=1",
            "training.schedule.warmup_epochs=0", "training.loop.hang_after_seconds=null",
            "evaluation.every_epochs=1", "evaluation.batch_size=8",
        ],
    )  # fmt: skip
    train(experiment)
    return experiment


@pytest.fixture(scope="module")
def checkpoint(experiment: Experiment) -> Location:
    checkpoints = open_run(experiment).checkpoints
    return checkpoints.child(CheckpointStore(checkpoints).newest() or "")


@pytest.fixture(scope="module")
def occluded(experiment: Experiment, checkpoint: Location) -> tuple[SeverityResult, ...]:
    return evaluate_occluded_here(experiment, checkpoint, [0.1, 0.3], 4, name="step")


def test_clean_figures_are_the_usual_ones_and_occluded_ones_say_what_they_are(
    experiment: Experiment, checkpoint: Location, occluded: tuple[SeverityResult, ...]
) -> None:
    usual = evaluate_here(experiment, checkpoint, name="step").result
    assert isinstance(usual, RetrievalResult)
    clean, light, heavy = occluded
    assert replace(clean.result, seconds=0.0) == replace(usual, seconds=0.0)
    assert clean.patches is None
    assert (clean.severity, light.severity, heavy.severity) == (0.0, 0.1, 0.3)
    assert heavy.result.protocol == "veri776, queries 30 % occluded"
    assert heavy.patches is not None
    assert f"seed 4, sha256 {heavy.patches.sha256[:12]}" in heavy.result.notes[-1]
    assert len({str(found.result.figures()) for found in occluded}) == 3
    table = results_table([found.result for found in occluded]).splitlines()
    rows = [line.split("  ")[1].strip() for line in table[2:5]]
    assert rows == ["veri776", "veri776, queries 10 % occluded", "veri776, queries 30 % occluded"]


def test_a_set_on_disk_gives_exactly_the_figures_of_occluding_on_the_fly(
    experiment: Experiment, checkpoint: Location, occluded: tuple[SeverityResult, ...], tmp_path: Path
) -> None:
    with open_data(experiment) as shards:
        queries = OccludedQueries(shards, OcclusionConfig(severity=0.3, seed=4))
        enrich_shards(shards.uri, tmp_path / "occluded", queries)
    on_disk = with_overrides(experiment, [f"data.shards={tmp_path / 'occluded'}"])
    actual = evaluate_here(on_disk, checkpoint).result
    expected = occluded[-1].result
    assert actual.figures() == expected.figures()
    assert actual.protocol == expected.protocol
    with pytest.raises(DataError, match="has queries 30 % occluded already"):
        evaluate_occluded_here(on_disk, checkpoint, [0.1], 0)


def test_in_vehicleids_trials_an_image_is_occluded_as_a_query_and_clean_in_the_gallery(
    folder: Path, experiment: Experiment, checkpoint: Location
) -> None:
    records = read_dataset(DatasetConfig(format="veri776", root=str(folder / "raw")))
    turned = [
        record if record.split == "train" else replace(record, split="test", subsets=("small",))
        for record in records
        if record.split != "query"
    ]
    pack_shards(turned, folder / "vehicleid", PackConfig(name="vehicleid"))
    changed = with_overrides(
        experiment,
        [f"data.shards={folder / 'vehicleid'}", "evaluation.protocol=vehicleid-small", "evaluation.trials=4"],
    )
    calls: list[tuple[int, OcclusionConfig | None]] = []
    config = OcclusionConfig(severity=0.3)
    with open_data(changed) as shards:
        trained = load_trained_model(checkpoint, CPU)

        def embed(rows: NDArray[np.int64], occlusion: OcclusionConfig | None) -> Embeddings:
            calls.append((len(rows), occlusion))
            return embed_rows(changed, trained, shards, rows, CPU, occlusion)

        results = evaluate_severities(
            changed, trained, shards, [config], embed=embed,
            rank=lambda trials, queries, gallery: evaluate_trials(gallery, trials, queries=queries), name="",
        )  # fmt: skip
        trials = evaluation_trials(changed, shards)
        rows = shards.index.rows("test")
        clean, patched = (embed_rows(changed, trained, shards, rows, CPU, how).features for how in (None, config))
        vehicles = shards.index.vehicle_id[rows]
    assert calls == [(18, None), (18, config)]
    reciprocal, wrong = [], []
    for trial in trials:
        query, gallery = (np.searchsorted(rows, part) for part in (trial.query_rows, trial.gallery_rows))
        for found, entries in ((reciprocal, clean), (wrong, patched)):
            distances = 1 - patched[query].astype(np.float64) @ entries[gallery].astype(np.float64).T
            true = distances[vehicles[query][:, None] == vehicles[gallery]]
            found.append(float(np.mean(1 / (1 + (distances < true[:, None]).sum(axis=1)))))
    result = results[-1].result
    np.testing.assert_allclose([trial.mAP for trial in result.trials], reciprocal, atol=1e-12)
    assert not np.allclose(wrong, reciprocal, atol=1e-3)
    assert result.protocol == "vehicleid-small, queries 30 % occluded"
    assert results[-1].patches is not None
    assert len(results[-1].patches.rows) == len(np.unique(np.concatenate([trial.query_rows for trial in trials])))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["0.1,1"], r"--occluded 1: expected a share of the area above 0 and below 1"),
        (["0"], "clean queries are always evaluated"),
        (["-0.2"], "above 0 and below 1"),
        (["20"], "above 0 and below 1"),
        (["nan"], "above 0 and below 1"),
        (["0.1,"], "expected 'curve' or shares"),
        (["curves"], "expected 'curve' or shares of the area such as 0.2"),
    ],
)
def test_severities_that_are_none_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_severities(texts)


@pytest.mark.usefixtures("own_signals")
def test_the_evaluation_job_prints_one_table_and_writes_figures_patches_and_curves(
    checkpoint: Location,
    occluded: tuple[SeverityResult, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(checkpoint.local_path), "--no-ray", *arguments])
        return evaluate.main()

    files = {name: tmp_path / name for name in ("figures.json", "patches.csv", "curve.png", "both.svg", "other.json")}
    asked = ["--occluded", "0.3", "--occluded", "0.1,0.3", "--occluded-seed", "4"]
    written = ["--output", str(files["figures.json"]), "--patches", str(files["patches.csv"])]
    assert run(*asked, *written, "--curve", str(files["curve.png"])) == 0
    assert (checkpoint.parent.local_path / "pins").is_dir()  # the checkpoint was held, and let go again
    assert CheckpointStore(checkpoint.parent).pinned() == set()
    printed = capsys.readouterr().out
    assert printed.count("veri776, queries 30 % occluded  ") == 1
    stored = json.loads(files["figures.json"].read_text())
    assert [item["figures"] for item in stored] == [found.result.figures() for found in occluded]
    assert [item["occlusion"]["severity"] for item in stored] == [0.0, 0.1, 0.3]
    assert stored[2]["occlusion"]["seed"] == 4
    assert occluded[2].patches is not None
    assert stored[2]["occlusion"]["patches_sha256"] == occluded[2].patches.sha256
    assert RetrievalResult.from_json(stored[2]).protocol == "veri776, queries 30 % occluded"
    with open(files["patches.csv"], newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(occluded[2].patches.rows)
    assert {line["severity"] for line in lines} == {"0.1", "0.3"}
    assert run("--occluded", "0.3", "--rerank", "6,3,0.5", "--curve", str(files["both.svg"])) == 0
    svg = files["both.svg"].read_text()
    assert all(f">{name}<" in svg for name in ("mAP", "R1", "mAP+RR", "R1+RR"))
    capsys.readouterr()
    picture = cv2.imread(str(files["curve.png"]))
    assert picture is not None
    assert (picture == 255).mean() > 0.8

    stored = [{**item, "occlusion": {**item["occlusion"], "run": "rival"}} for item in stored]
    files["other.json"].write_text(json.dumps(stored))
    both = ["--curve", str(files["both.svg"]), "--curve-with", str(files["other.json"])]
    assert run(*asked, *both) == 0
    assert "rival mAP" in files["both.svg"].read_text()
    assert run(*asked[:-1], "5", *both) == 2
    assert "has other patches, of seed 4, not 5" in capsys.readouterr().err
    other_data = [{**item, "occlusion": {**item["occlusion"], "patches_sha256": "0" * 64}} for item in stored]
    files["other.json"].write_text(json.dumps(other_data))
    assert run(*asked, *both) == 2
    assert "has other patches at severity 0.1 of veri776" in capsys.readouterr().err
    files["other.json"].write_text("[{}]")
    for arguments, message in (
        ([*asked, *both], "holds no figures by severity"),
        (["--occluded", "30"], "--occluded 30: expected a share of the area"),
        (["--occluded", "0.3", "--occluded-seed", "-1"], "--occluded-seed -1: expected 0 or more"),
        (["--occluded", "0.3", "--curve", "curve.gif"], "expected a name that ends in .png or .svg"),
        (["--occluded", "0.3", "--patches", "patches.txt"], "expected a name that ends in .csv or .json"),
        (["--occluded", "0.3", "--curve-with", str(files["figures.json"])], "--curve-with belongs to --curve"),
        (["--curve", "curve.png"], "--curve belongs to --occluded"),
        (["--occluded", "0.3", "--curve", "gone/curve.png"], "--curve gone/curve.png: the folder gone does not exist"),
        (["--output", "gone/figures.json"], "--output gone/figures.json: the folder gone does not exist"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("own_signals")
def test_the_job_that_makes_an_occluded_set_writes_it_with_patches_and_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["make_occluded.py", "--no-ray", *arguments])
        return make_occluded.main()

    source, target, picture = str(folder / "shards"), str(tmp_path / "occluded"), tmp_path / "picture.png"
    patches = tmp_path / "patches.json"
    asked = ["--severity", "0.2", "--seed", "3"]
    assert run(source, target, *asked, "--patches", str(patches), "--pictures", str(picture)) == 0
    printed = capsys.readouterr().out
    (table,) = json.loads(patches.read_text())
    assert f"sha256 {table['patches_sha256']}" in printed
    with open_shards(target) as shards:
        settings = shards.manifest.additions[-1].settings
        assert (settings["severity"], settings["seed"]) == (0.2, 3)
        assert settings["patches_sha256"] == table["patches_sha256"]
        assert len(table["patches"]) == shards.manifest.counts["query"]
    assert cv2.imread(str(picture)) is not None
    assert run(source, target, *asked) == 0
    assert "all there before" in capsys.readouterr().out
    assert run(source, target, "--severity", "0.3") == 2
    assert run(target, str(tmp_path / "again"), *asked) == 3
    assert "has queries 20 % occluded already" in capsys.readouterr().err
    assert run(source, str(tmp_path / "no"), "--severity", "1.2") == 2
    assert run(str(tmp_path / "nowhere"), str(tmp_path / "no"), *asked) == 3
