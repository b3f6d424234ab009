"""Ablation tables fill run by run: what is done is not repeated, what was interrupted goes on (without Ray)."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cluster import ablation
from reid.build.ablation import BASELINE, PMANET, PMANET_VARIANTS, AblationRow, AblationTable
from reid.build.ablation_report import table_text
from reid.build.added_parts import UniformStripes
from reid.build.evaluation import Evaluation, evaluate_here
from reid.build.occlusion import SeverityResult, evaluate_occluded_here
from reid.build.run_folder import open_run
from reid.config import PMNetExperiment, ReidExperiment, load_experiment, with_overrides
from reid.contracts import DataError
from reid.data.coarse_masks import CoarseMaskConfig, CoarseMasks
from reid.data.enrichment import enrich_shards
from reid.data.occluded_queries import OccludedQueries
from reid.data.occlusion import OcclusionConfig
from reid.data.shard_set import open_shards
from reid.storage import open_location
from reid.training.checkpoint import CheckpointStore
from tests.synthetic_shards import pack_synthetic, small_config
from tests.training_runs import train as train_in_this_process

TABLE = AblationTable(
    title="a table",
    columns=("method", "queries"),
    rows=(
        AblationRow(cells=("baseline", "clean"), variant=BASELINE, paper=(77.4, 96.0, 97.6)),
        AblationRow(cells=("PMANet", "clean"), variant=PMANET, partial_tasks=True),
        AblationRow(cells=("PMANet-o", "clean"), variant=PMANET),
        AblationRow(cells=("PMANet-o", "covered"), variant=PMANET, occluded=0.2),
    ),
)


@pytest.fixture
def base(tmp_path: Path) -> PMNetExperiment:
    shards = pack_synthetic(
        tmp_path, small_config(num_train_identities=4, num_test_identities=2, num_cameras=2), "four"
    )
    return load_experiment(
        None,
        [
            "name=tiny", f"runs={tmp_path / 'runs'}", f"data.shards={shards}", "data.plan.identities_per_batch=2",
            "data.plan.images_per_identity=2", "data.transform.height=32", "data.transform.width=32",
            "model.backbone.name=resnet18", "model.part_head.num_parts=2", "model.part_head.branch_channels=8",
            "model.global_head.channels=8", "training.step.precision=float32", "training.loop.epochs=2",
            "training.loop.hang_after_seconds=null", "evaluation.every_epochs=2",
        ],
        PMNetExperiment,
    )  # fmt: skip


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was trained and evaluated, in order, in this process instead of on Ray."""
    done: list[str] = []

    def train(experiment: ReidExperiment, resume: object) -> None:
        train_in_this_process(experiment)
        folder = open_run(experiment)
        name = CheckpointStore(folder.checkpoints).newest()
        assert name is not None
        done.append(f"train {experiment.name}")
        folder.write_evaluation(name, evaluate_here(experiment, folder.checkpoints.child(name)).to_json())

    def evaluate(experiment: ReidExperiment, checkpoint: str) -> Evaluation:
        done.append(f"evaluate {experiment.name}, partial tasks {experiment.evaluation.partial_tasks}")
        return evaluate_here(experiment, open_location(checkpoint))

    def occluded(
        experiment: ReidExperiment, checkpoint: str, severities: list[float], seed: int
    ) -> tuple[SeverityResult, ...]:
        done.append(f"occlude {experiment.name}")
        return evaluate_occluded_here(experiment, open_location(checkpoint), severities, seed)

    replacements: dict[str, Any] = {
        "train": train, "evaluate_checkpoint": evaluate, "evaluate_occluded": occluded,
        "ray_connection": nullcontext, "check_evaluation_resources": lambda cluster: None,
    }  # fmt: skip
    for name, replacement in replacements.items():
        monkeypatch.setattr(ablation, name, replacement)
    return done


def test_a_table_is_filled_once_and_goes_on_where_it_was_interrupted(
    base: PMNetExperiment, work: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {"small": TABLE}
    assert [line.split()[:2] for line in ablation.plan_of_tables(base, tables, [0])] == [
        ["tiny-baseline-s0", "to"],
        ["tiny-pmanet-s0", "to"],
    ]
    calm = ablation.evaluate_checkpoint

    def killed(experiment: ReidExperiment, checkpoint: str) -> Evaluation:
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "evaluate_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        ablation.run_tables(base, tables, [0])
    monkeypatch.setattr(ablation, "evaluate_checkpoint", calm)
    assert work == ["train tiny-baseline-s0", "train tiny-pmanet-s0"]
    half = (tmp_path / "runs" / "tiny-ablation" / "small.md").read_text()
    assert [line.split("|")[3].strip() for line in half.splitlines()[4:8]] == ["1", "0", "0", "0"]
    assert "done" in ablation.plan_of_tables(base, tables, [0])[1]

    work.clear()
    filled = ablation.run_tables(base, tables, [0])["small"]
    assert work == ["evaluate tiny-pmanet-s0, partial tasks False", "occlude tiny-pmanet-s0"]
    assert [len(filled.of_row(place)) for place in range(4)] == [1, 1, 1, 1]
    results = [filled.of_row(place)[0] for place in range(4)]
    assert "partial tasks" in results[1].notes[0]
    assert results[2].notes == ()
    assert results[3].protocol != results[2].protocol
    assert len({result.checkpoint_hash for result in results[1:]}) == 1

    work.clear()
    again = ablation.run_tables(base, tables, [0])["small"]
    assert work == []
    assert table_text(again) == table_text(filled)
    assert (tmp_path / "runs" / "tiny-ablation" / "small.md").read_text() == table_text(filled) + "\n"


def test_a_run_of_other_settings_is_refused(base: PMNetExperiment, work: list[str]) -> None:
    table = {"small": AblationTable(title="", columns=TABLE.columns, rows=TABLE.rows[:1])}
    ablation.run_tables(base, table, [0])
    other = base.model_copy(
        update={"model": base.model.model_copy(update={"neck": base.model.neck.model_copy(update={"pooling": "gem"})})}
    )
    with pytest.raises(ValueError, match=r"model\.neck\.pooling: 'average' in the checkpoint, 'gem' now"):
        ablation.run_tables(other, table, [0])


def test_rows_that_would_be_the_same_run_and_another_length_are_refused_before_anything_is_trained(
    base: PMNetExperiment, work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PMANET_VARIANTS, "twin", ())
    rows = (AblationRow(cells=("a", ""), variant=PMANET), AblationRow(cells=("b", ""), variant="twin"))
    twins = {"twins": AblationTable(title="", columns=TABLE.columns, rows=rows)}
    for refuse in (ablation.run_tables, ablation.plan_of_tables):
        with pytest.raises(ValueError, match="the variants 'pmanet' and 'twin' are the same run"):
            refuse(base, twins, [0])
    assert work == []
    table = {"small": AblationTable(title="", columns=TABLE.columns, rows=TABLE.rows[:1])}
    ablation.run_tables(base, table, [0])
    with pytest.raises(ValueError, match=r"is a run with training\.loop\.epochs 2, expected 1"):
        ablation.run_tables(with_overrides(base, ["training.loop.epochs=1", "evaluation.every_epochs=1"]), table, [0])
    with pytest.raises(ValueError, match=r"is a run with model\.backbone\.weights None, expected cache"):
        ablation.run_tables(with_overrides(base, ["model.backbone.weights=cache"]), table, [0])


def test_stripes_are_not_compared_with_stripes(base: PMNetExperiment, work: list[str], tmp_path: Path) -> None:
    striped = str(tmp_path / "striped")
    enrich_shards(base.data.shards, striped, UniformStripes(2))
    rows = (AblationRow(cells=("a", ""), variant=PMANET), AblationRow(cells=("b", ""), variant="stripes"))
    tables = {"iii": AblationTable(title="", columns=TABLE.columns, rows=rows)}
    with pytest.raises(DataError, match=r"table iii compares uniform stripes .* locate parts first"):
        ablation.run_tables(with_overrides(base, [f"data.shards={striped}"]), tables, [0])
    assert work == []


def test_what_the_data_set_lacks_is_said_before_anything_is_trained(base: PMNetExperiment, work: list[str]) -> None:
    tables = {"small": TABLE}
    with pytest.raises(DataError, match=r"variant 'baseline' of table small: .*no image of split 'test'"):
        ablation.run_tables(with_overrides(base, ["evaluation.protocol=vehicleid-small"]), tables, [0])
    assert work == []


def test_rows_with_parts_of_occluded_queries_wait_for_their_data_set(
    base: PMNetExperiment, work: list[str], tmp_path: Path
) -> None:
    covered = AblationRow(cells=("PMANet", "covered"), variant=PMANET, partial_tasks=True, occluded=0.2)
    tables = {"small": AblationTable(title="", columns=TABLE.columns, rows=(TABLE.rows[1], covered))}
    filled = ablation.run_tables(base, tables, [0])["small"]
    assert [len(filled.of_row(place)) for place in range(2)] == [1, 0]

    paths = [base.data.shards, *(str(tmp_path / name) for name in ("other-seed", "occluded", "located"))]
    with open_shards(paths[0]) as clean:
        enrich_shards(paths[0], paths[1], OccludedQueries(clean, OcclusionConfig(severity=0.2, seed=1)))
        enrich_shards(paths[0], paths[2], OccludedQueries(clean, OcclusionConfig(severity=0.2, seed=0)))
    enrich_shards(paths[2], paths[3], CoarseMasks(CoarseMaskConfig(size=48, padding=8, iterations=1)))
    with pytest.raises(DataError, match=r"other-seed: expected queries of severity 0\.2 and seed 0"):
        ablation.run_tables(base, tables, [0], occluded_parts=paths[1])
    with pytest.raises(DataError, match="masks of the clean images"):
        ablation.run_tables(base, tables, [0], occluded_parts=paths[2])
    with pytest.raises(ValueError, match="--occluded-parts: no row of table small needs it"):
        ablation.run_tables(base, {"small": TABLE}, [0], occluded_parts=paths[3])

    work.clear()
    filled = ablation.run_tables(base, tables, [0], occluded_parts=paths[3])["small"]
    assert work == ["evaluate tiny-pmanet-s0, partial tasks True"]
    assert "20 % occluded" in filled.of_row(1)[0].protocol
    work.clear()
    ablation.run_tables(base, tables, [0], occluded_parts=paths[3])
    assert work == []
