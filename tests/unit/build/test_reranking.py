"""Re-ranking of a run's checkpoint, without Ray: settings, result, stored evaluation, report and the job."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jobs import evaluate
from reid.build.data import open_data
from reid.build.evaluation import Evaluation, evaluate_here
from reid.build.report import write_run_report
from reid.build.results import read_result
from reid.build.run_folder import open_run
from reid.config import Experiment, load_experiment, with_overrides
from reid.evaluation.results import RetrievalResult
from reid.storage import Location
from reid.training.checkpoint import CheckpointStore
from tests.synthetic_shards import pack_synthetic, small_config
from tests.training_runs import train

RERANK = ["evaluation.rerank={k1: 6, k2: 3, weight: 0.3}"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A trained run of seconds."""
    folder = tmp_path_factory.mktemp("reranking")
    experiment = load_experiment(
        None,
        [
            "name=tiny",
            f"runs={folder / 'runs'}",
            f"data.shards={pack_synthetic(folder, small_config(6, 5, 4), 'tiny')}",
            "data.transform.height=32",
            "data.transform.width=32",
            "data.plan.identities_per_batch=3",
            "data.plan.images_per_identity=2",
            "model.backbone.name=resnet18",
            "model.planes=null",
            "training.step.precision=float32",
            "training.loop.epochs=1",
            "training.schedule.warmup_epochs=0",
            "evaluation.num_rank_lists=3",
            "evaluation.trapezoid_ap=true",
        ],
    )
    train(experiment)
    return experiment


@pytest.fixture(scope="module")
def checkpoint(experiment: Experiment) -> Location:
    folder = open_run(experiment)
    name = CheckpointStore(folder.checkpoints).newest()
    assert name is not None
    return folder.checkpoints.child(name)


def retrieval(evaluation: Evaluation) -> RetrievalResult:
    assert isinstance(evaluation.result, RetrievalResult)
    return evaluation.result


@pytest.fixture(scope="module")
def both(experiment: Experiment, checkpoint: Location) -> Evaluation:
    return evaluate_here(with_overrides(experiment, RERANK), checkpoint, name="tiny")


def test_the_result_carries_figures_before_and_after(
    experiment: Experiment, checkpoint: Location, both: Evaluation
) -> None:
    base, after = retrieval(evaluate_here(experiment, checkpoint, name="tiny")), retrieval(both).reranked
    assert after is not None
    assert base.reranked is None
    assert retrieval(both).metrics == base.metrics
    assert (retrieval(both).post_processing, after.post_processing) == ("none", "re-ranking k1=6 k2=3 lambda=0.3")
    assert after.metrics.mAP != base.metrics.mAP
    assert after.metrics.num_valid_queries == base.metrics.num_valid_queries
    assert after.metrics.trapezoid_mAP is not None


def test_stored_and_reported_are_both(experiment: Experiment, checkpoint: Location, both: Evaluation) -> None:
    folder = open_run(experiment)
    folder.write_evaluation(checkpoint.name, both.to_json())
    stored = folder.evaluation(checkpoint.name)
    assert stored is not None
    assert read_result(experiment, stored) == both.result
    asked = with_overrides(experiment, RERANK)
    assert folder.evaluated(asked.evaluation.model_dump(mode="json")) == {checkpoint.name}
    assert folder.evaluated(experiment.evaluation.model_dump(mode="json")) == set()
    with open_data(experiment) as shards:
        page = Path(write_run_report(asked, folder, shards).removeprefix("file://")).read_text()
    assert "<th>mAP+RR</th>" in page
    assert "re-ranking k1=6 k2=3 lambda=0.3" in page
    (reported,) = json.loads((folder.report.local_path / "report.json").read_text())["results"]
    assert reported["figures"].keys() >= {"mAP", "mAP+RR", "R1+RR"}


@pytest.mark.parametrize(
    ("protocol", "words"),
    [("table", "k1=6 k2=3 lambda=0.5"), ("cross-camera", "k1=6 k2=3 lambda=0.5")],
)
def test_the_job_prints_and_writes_both(
    checkpoint: Location,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    protocol: str,
    words: str,
) -> None:
    output = tmp_path / "results.json"
    call = [checkpoint.uri, "--no-ray", "--rerank", "6,3,0.5", "--protocol", protocol, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *call])
    assert evaluate.main() == 0
    (result,) = json.loads(output.read_text())
    assert result["reranked"]["post_processing"] == f"re-ranking {words}"
    assert result["post_processing"] == "none"
    header, _, row, *notes = capsys.readouterr().out.splitlines()
    assert header.split()[-5:] == ["mAP+RR", "R1+RR", "R5+RR", "R10+RR", "mINP+RR"]
    for key in ("mAP", "mAP+RR"):
        assert f"{100 * result['figures'][key]:.1f}" in row
    assert f"note: +RR: re-ranking {words}" in notes
    if protocol == "cross-camera":
        assert len(result["reranked"]["trials"]) == len(result["trials"]) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rerank", "20,30,0.3"], "k2 30 is larger than k1 20"),
        (["--rerank", "60,6,0.3"], "lower evaluation.rerank.k1"),
        (["--rerank", "yes"], "or auto; got 'yes'"),
        (["cluster.evaluation_workers=2"], "cluster.evaluation_workers=2 does nothing to an evaluation with --no-ray"),
        (["metrics.prometheus_port=9999"], "metrics.prometheus_port=9999 does nothing to an evaluation: remove it"),
        (["training.loop.epochs=3"], "training.loop.epochs=3: the checkpoint was trained without it"),
    ],
)
def test_the_job_refuses_what_makes_no_sense(
    checkpoint: Location,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", checkpoint.uri, "--no-ray", *options])
    assert evaluate.main() == 2
    assert message in capsys.readouterr().err
