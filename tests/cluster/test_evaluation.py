"""The evaluation of a checkpoint on evaluation workers, and what it is given up for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.dry_run import dry_run
from cluster.evaluation import EvaluationFailed, evaluate_checkpoint, evaluate_occluded, evaluate_protocols
from cluster.trainer import Resume, evaluate_run
from cluster.trainer import train as train_on_cluster
from jobs import evaluate
from reid.build.checkpoints import load_trained_experiment, load_trained_run
from reid.build.data import open_data
from reid.build.evaluation import IMAGES_EMBEDDED, evaluate_all_here, evaluate_here
from reid.build.run_folder import open_run
from reid.config import Experiment, with_overrides
from reid.evaluation.trials import IMAGES_COMPARED, QUERIES_RANKED
from reid.progress import Progress
from reid.storage import Location
from reid.training.checkpoint import CheckpointStore
from reid.training.run_lock import RunLock
from tests.cluster.conftest import tiny_experiment
from tests.training_runs import train

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def trained(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Location]:
    overrides = ["cluster.num_workers=1", "cluster.evaluation_workers=1", "model.planes=null"]
    experiment = tiny_experiment(tiny_shards, tmp_path_factory.mktemp("evaluation"), *overrides)
    train(experiment)
    folder = open_run(experiment)
    name = CheckpointStore(folder.checkpoints).newest()
    assert name is not None
    return experiment, folder.checkpoints.child(name)


def test_an_evaluation_that_runs_too_long_is_given_up(trained: tuple[Experiment, Location], local_ray: None) -> None:
    hurried = with_overrides(trained[0], ["cluster.evaluation_timeout_seconds=0.001"])
    with pytest.raises(EvaluationFailed, match=r"not done after running for 0.001 s"):
        evaluate_checkpoint(hurried, trained[1].uri)
    with pytest.raises(EvaluationFailed, match=r"not done after running for 0.001 s"):
        evaluate_occluded(hurried, trained[1].uri, [0.2], seed=0)


def test_several_protocols_embed_each_image_once_and_give_the_figures_of_each_alone(
    trained: tuple[Experiment, Location], local_ray: None
) -> None:
    rerank = "evaluation.rerank={k1: 4, k2: 2, weight: 0.3}"
    changes = (["veri776", rerank], ["veri776-raw"], ["table", rerank.replace("4", "9")])
    experiments = [with_overrides(trained[0], [f"evaluation.protocol={name}", *more]) for name, *more in changes]
    begun: list[str] = []

    def stages(title: str) -> Progress:
        begun.append(title)
        return lambda done, total: None

    on_workers = evaluate_protocols(experiments, trained[1].uri, "step", stages)
    begun.clear()  # on workers what is done at once may never be told
    here = evaluate_all_here(experiments, trained[1], name="step", stages=stages)
    assert [title.partition(",")[0] for title in begun] == [
        IMAGES_EMBEDDED, IMAGES_COMPARED, QUERIES_RANKED, QUERIES_RANKED, IMAGES_COMPARED, QUERIES_RANKED,
    ]  # fmt: skip
    assert begun[3] == f"{QUERIES_RANKED}, veri776-raw"
    alone = [evaluate_here(experiment, trained[1], name="step") for experiment in experiments]
    assert len({str(each.result.figures()) for each in alone}) == 3
    for found in (on_workers, here):
        for one, expected in zip(found, alone, strict=True):
            assert one.result.protocol == expected.result.protocol
            assert one.result.figures() == expected.result.figures()
            assert one.examples == expected.examples
            assert one.settings == expected.settings


def test_a_plan_a_table_and_a_page_are_what_an_evaluation_gives(
    trained: tuple[Experiment, Location],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    page = tmp_path / "page.html"
    arguments = ["--protocol", "veri776", "--protocol", "table", "--page", str(page), "evaluation.num_rank_lists=3"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(trained[1].local_path), "--no-ray", *arguments])
    with caplog.at_level("INFO"):
        assert evaluate.main() == 0
    plan = next(message for message in caplog.messages if message.startswith("plan of the evaluation"))
    assert f"{trained[1].name} of tiny: resnet18, no planes" in plan
    assert "this process, on the CPU" in plan
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in table[2:4]] == ["veri776", "table"]
    text = page.read_text(encoding="utf-8")
    assert f"{trained[1].name} of tiny" in text
    assert "veri776: Rank lists: easiest queries" in text
    assert "table: Rank lists: hardest queries" in text
    assert text.count("data:image/jpeg;base64,") == 6


def test_the_plan_counts_the_queries_of_each_severity(
    trained: tuple[Experiment, Location], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--occluded", "0.1,0.3", "--no-ray"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(trained[1].local_path), *arguments])
    with caplog.at_level("INFO"):
        assert evaluate.main() == 0
    plan = next(message for message in caplog.messages if message.startswith("plan of the evaluation"))
    assert "occluded    10, 30 % of each query, one after the other" in plan
    with open_data(trained[0]) as shards:
        queries, gallery = len(shards.index.rows("query")), len(shards.index.rows("gallery"))
    assert f"images      {3 * queries + gallery} of " in plan


def test_options_that_an_evaluation_would_not_heed_are_refused(
    trained: tuple[Experiment, Location], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (["--page", "page.html", "--occluded", "0.2"], "--page shows the ranking of clean queries"),
        (["--page", "/gone/page.html"], "--page /gone/page.html: the folder /gone does not exist"),
        (["evaluation.num_rank_lists=3"], "is about the page of an evaluation: give --page FILE.html"),
        (["data.plan.images_per_identity=3"], "does nothing to an evaluation: remove it"),
        (["cluster.evaluation_workers=2"], "does nothing to an evaluation with --no-ray"),
    ):
        monkeypatch.setattr("sys.argv", ["evaluate.py", str(trained[1].local_path), "--no-ray", *arguments])
        assert evaluate.main() == 2
        assert words in capsys.readouterr().err


def test_a_dry_run_refuses_what_the_run_would_refuse(
    trained: tuple[Experiment, Location], local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = trained[0]
    with pytest.raises(ValueError, match=r"--resume never: .* already holds"):
        dry_run(experiment, Resume.NEVER)
    other = with_overrides(experiment, ["training.optimizer.learning_rate=0.5"])
    with pytest.raises(ValueError, match=r"learning_rate: 0.00035 in the checkpoint, 0.5 now"):
        dry_run(other)
    with RunLock(open_run(experiment).location), pytest.raises(ValueError, match="is held by process"):
        dry_run(experiment)
    with caplog.at_level("INFO"):
        # Its first weights are gone, which a run that continues does not mind.
        changes = ["evaluation.flip=true", "model.backbone.weights=/gone/first.pth"]
        dry_run(with_overrides(other, changes), Resume.MUST, resume_anyway=True)
    assert f"continues at {trained[1].name}" in caplog.text
    assert "each time, on 1 CPU thread(s), beside training" in caplog.text
    with pytest.raises(ValueError, match=r"would take .* be given up after cluster\.evaluation_timeout_seconds = 0 s"):
        dry_run(with_overrides(experiment, ["cluster.evaluation_timeout_seconds=0.001"]))


def test_damaged_weights_are_named_without_the_traceback_of_a_worker(
    trained: tuple[Experiment, Location], tmp_path: Path, local_ray: None
) -> None:
    damaged = tmp_path / "checkpoints" / trained[1].name
    shutil.copytree(trained[1].local_path, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(EvaluationFailed) as caught:
        evaluate_checkpoint(trained[0], str(damaged))
    assert "model.safetensors" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "ray::" not in str(caught.value)


def test_a_run_folder_that_cannot_be_written_is_named_with_its_setting(tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    experiment = tiny_experiment(tiny_shards, tmp_path / "file")
    with pytest.raises(ValueError, match=r"^runs=.*/file: cannot be written: .*Not a directory"):
        train_on_cluster(experiment)


def test_a_protocol_that_the_data_set_lacks_is_refused_before_training(tiny_shards: Path, tmp_path: Path) -> None:
    experiment = tiny_experiment(tiny_shards, tmp_path, "evaluation.protocol=vehicleid-small")
    with pytest.raises(ValueError, match="protocol 'vehicleid-small'"):
        train_on_cluster(experiment)
    with pytest.raises(ValueError, match="protocol 'vehicleid-small'"):
        evaluate_run(experiment)
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_what_is_no_checkpoint_is_told_apart(trained: tuple[Experiment, Location], tmp_path: Path) -> None:
    checkpoint = trained[1]
    assert load_trained_experiment(checkpoint).name == "tiny"
    for wrong, words in (
        (checkpoint.parent, f"is a folder of checkpoints: name one of them, the newest is .*{checkpoint.name}"),
        (checkpoint.parent.parent, f"is a run folder: name one of them, the newest is .*checkpoints/{checkpoint.name}"),
        (checkpoint.parent.child("step-99999999"), "does not exist: expected a checkpoint folder"),
        (checkpoint.child("model.safetensors"), "is a file: expected a checkpoint folder.*model.backbone.weights"),
    ):
        for load in (load_trained_experiment, lambda location: load_trained_run(location, Experiment)):
            with pytest.raises(ValueError, match=words):
                load(wrong)


def test_a_finished_run_is_not_given_fewer_epochs(trained: tuple[Experiment, Location]) -> None:
    checkpoint = trained[1]
    longer = trained[0].training.loop.epochs
    shorter = with_overrides(trained[0], [f"training.loop.epochs={longer - 1}", "evaluation.every_epochs=1"])
    with pytest.raises(
        ValueError, match=rf"epochs is {longer - 1}, but {checkpoint.name} .* has {longer} epochs behind"
    ):
        train_on_cluster(shorter)


def test_first_weights_that_do_not_exist_are_refused_before_ray_is_started(tiny_shards: Path, tmp_path: Path) -> None:
    experiment = tiny_experiment(tiny_shards, tmp_path, "model.backbone.weights=/gone/first.pth")
    with pytest.raises(ValueError, match=r"model\.backbone\.weights=/gone/first\.pth: expected .* does not exist"):
        train_on_cluster(experiment)


def test_protocols_are_checked_before_the_first_one_is_scored(
    trained: tuple[Experiment, Location], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.evaluation_job.evaluate_all_here", lambda *_, **__: pytest.fail("scored"))
    for protocols, words in (
        (("veri776", "vehicleid-small"), "protocol 'vehicleid-small'"),
        (("veri776", "table", "veri776"), "--protocol veri776 is given twice"),
    ):
        chosen = [text for name in protocols for text in ("--protocol", name)]
        monkeypatch.setattr("sys.argv", ["evaluate.py", str(trained[1].local_path), "--no-ray", *chosen])
        assert evaluate.main() == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("override", ["data.transform.height=16", "evaluation.num_rank_lists=3"])
def test_what_would_change_the_network_or_nothing_is_refused(
    trained: tuple[Experiment, Location], override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(trained[1].local_path), "--no-ray", override])
    assert evaluate.main() == 2
