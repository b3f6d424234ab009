"""Ablation tables: what each variant changes, the paper's figures, the table that is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from reid.build.ablation import PIXEL_SPACE, PMANET_VARIANTS, TABLES, evaluated_as, tables_of, variant_of
from reid.build.ablation_report import TableResults, table_text, write_table
from reid.build.training import build_model
from reid.config import Experiment, PMNetExperiment, digest, digestible, load_experiment, with_overrides
from reid.evaluation.metrics import RetrievalMetrics
from reid.evaluation.results import RetrievalResult
from reid.storage import open_location

BASE = load_experiment(
    None,
    [
        "name=base", "model.backbone.name=resnet18", "model.backbone.weights=null", "model.part_head.branch_channels=8",
        "model.global_head.channels=8", "training.optimizer.loss_weight_rate=30", "data.transform.height=64",
    ],
    PMNetExperiment,
)  # fmt: skip
VARIANTS = sorted({row.variant for table in TABLES.values() for row in table.rows} - {PIXEL_SPACE})


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_built_on_the_bases_data_and_budget(variant: str) -> None:
    experiment = variant_of(BASE, variant, 3)
    assert experiment.name == f"base-{variant}-s3"
    assert experiment.seed == 3
    assert experiment.data == BASE.data
    assert experiment.training.loop == BASE.training.loop
    assert experiment.model.backbone == BASE.model.backbone
    with torch.device("meta"):
        build_model(experiment, 5)


def test_no_two_variants_are_the_same() -> None:
    assert len({digest(variant_of(BASE, variant, 3)) for variant in VARIANTS}) == len(VARIANTS)


def test_variants_change_what_their_rows_say() -> None:
    whole = digestible(variant_of(BASE, "pmanet", 0))

    def changes(variant: str) -> dict[str, object]:
        own = digestible(variant_of(BASE, variant, 0))
        return {key: own.get(key) for key in sorted(own.keys() | whole.keys()) if own.get(key) != whole.get(key)}

    assert changes("no-mam") == {"model.part_head.attention.kind": "none"}
    assert changes("stripes") == {"model.part_head.boxes": "stripes"}
    assert changes("no-sharing-no-transfer-loss") == {
        "loss.part_transfer_weight": 0.0,
        "model.part_head.share_attention": False,
    }
    assert changes("fixed-4") == {
        "loss.fixed_weights": [4.0, 1.0, 1.0, 1.0, 1.0],
        "loss.uncertainty_from_epoch": None,
        "model.learned_loss_weights": False,
        "training.optimizer.loss_weight_rate": 1.0,
    }
    assert changes("late-hul") == {"loss.uncertainty_from_epoch": 30}
    assert changes("no-classification") == {"loss.identity_losses": ["global", "main", "partial"]}
    assert changes("no-summation") == {"loss.branch_logits": "each"}
    no_task_4 = changes("no-part-transfer-task")
    assert no_task_4.pop("loss.triplet_losses") == ["global"]
    assert no_task_4.pop("loss.part_transfer_weight") == 0
    assert no_task_4 == changes("no-concatenation") == {"loss.identity_losses": ["global", "main_sum", "partial_sum"]}
    planes = {name: variant_of(BASE, name, 0) for name in ("baseline", "front", "front-back-side", "ppt")}
    assert all(isinstance(run, Experiment) for run in planes.values())
    weights = {name: run.loss.planes.plane_weights for name, run in planes.items() if isinstance(run, Experiment)}
    assert weights["front"] == (0.5, 0.0, 0.0, 0.0)
    assert weights["front-back-side"] == (0.5, 0.5, 0.3, 0.0)
    assert weights["ppt"] == (0.5, 0.5, 0.3, 0.2)
    assert planes["baseline"].model.planes is None  # type: ignore[union-attr]


def test_partial_tasks_are_evaluated_where_a_row_asks_and_a_variant_has_them() -> None:
    def partial(table: str, variant: str) -> list[bool]:
        rows = [row for row in TABLES[table].rows if row.variant == variant]
        return [evaluated_as(variant_of(BASE, variant, 0), row).evaluation.partial_tasks for row in rows]

    assert partial("methods", "pmanet") == [False, True]
    assert partial("methods", "baseline") == [False]
    assert partial("iii", "global-only") == [False]
    assert partial("iii", "plain-branches") == [True]
    assert partial("vi", "no-part-transfer-task") == [True]


PAPER_CAPTIONS = {
    "5": ("ppt", r"Table 5"), "6": ("ppt", r"Table 6"),
    "iii": ("pmanet", r"TABLE III\b"), "iv": ("pmanet", r"TABLE IV\b"),
    "v": ("pmanet", r"TABLE V\b"), "vi": ("pmanet", r"TABLE VI\b"), "vii": ("pmanet", r"TABLE VII\b"),
    "viii": ("pmanet", r"TABLE VIII\b"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER_CAPTIONS)
def test_tables_hold_the_papers_rows_in_their_order(name: str, request: pytest.FixtureRequest) -> None:
    papers = request.config.rootpath.parent / "shared" / "papers"
    if not papers.is_dir():
        pytest.skip("the papers' texts are not beside this checkout")
    paper, caption = PAPER_CAPTIONS[name]
    text = (papers / f"{paper}.txt").read_text()
    # Of Table VIII the large set: the clean rows beside it are Table I's.
    wanted = [row.paper for row in TABLES[name].rows if row.occluded or name != "viii"]
    assert None not in wanted
    number = r"(\d\.\d{3})" if paper == "ppt" else r"(\d\d\.\d)"
    nearby = [text[found.start() : found.start() + 1500] for found in re.finditer(caption, text)]
    scale = 100 if paper == "ppt" else 1
    # Three figures at the end of a line: a row of the table that the caption belongs to.
    found = [
        [
            tuple(round(scale * float(cell), 1) for cell in row)
            for row in re.findall(rf"{number}\s+{number}\s+{number}\s*\n", part)
        ]
        for part in nearby
    ]
    assert any(rows[: len(wanted)] == wanted for rows in found), found


def test_ppt_alone_has_ppts_tables() -> None:
    ppt = Experiment(name="ppt")
    assert list(tables_of(ppt, ["5", "6"])) == ["5", "6"]
    with pytest.raises(ValueError, match="table iii has variants of PMANet"):
        tables_of(ppt, ["iii"])
    with pytest.raises(ValueError, match="unknown table xx; there are methods, 5"):
        tables_of(BASE, ["xx"])
    with pytest.raises(ValueError, match="'pmanet' is one of PMANet"):
        variant_of(ppt, "pmanet", 0)
    with pytest.raises(ValueError, match="unknown variant 'nothing'"):
        variant_of(BASE, "nothing", 0)
    assert set(tables_of(BASE, ["III", "vii"])) == {"iii", "vii"}


def result(mean_ap: float) -> RetrievalResult:
    metrics = RetrievalMetrics(
        mAP=mean_ap, cmc={1: 0.5, 5: 0.75, 10: 1.0}, mINP=0.1, num_queries=4, num_valid_queries=4
    )
    return RetrievalResult(protocol="veri776", metrics=metrics, checkpoint_hash="a", manifest_hash="b")


def test_a_table_shows_mean_and_deviation_beside_the_paper_and_what_is_missing(tmp_path: Path) -> None:
    filled = TableResults(table=TABLES["5"], seeds=(0, 1, 2))
    for seed, value in enumerate((0.30, 0.34)):
        filled.add(TABLES["5"].rows[0], seed, result(value))
    filled.add(TABLES["5"].rows[4], 1, result(0.4))
    lines = table_text(filled).splitlines()
    assert lines[0] == "PPT, Table 5: the effectiveness of each part"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:9]]
    assert cells[0][:8] == ["front", "back", "side", "roof", "seeds", "mAP", "CMC@1", "CMC@5"]
    assert cells[2] == ["", "", "", "", "2", "32.0 +- 2.8", "50.0 +- 0.0", "75.0 +- 0.0", "77.4", "96.0", "97.6"]
    assert cells[3][4:8] == ["0", "-", "-", "-"]
    assert cells[6] == ["x", "x", "x", "x", "1", "40.0", "50.0", "75.0", "80.5", "95.9", "98.7"]
    write_table(filled, open_location(tmp_path), "5")
    stored = json.loads((tmp_path / "5.json").read_text())
    assert stored["rows"][0]["results"]["1"]["figures"]["mAP"] == 0.34
    assert (tmp_path / "5.md").read_text().startswith("PPT, Table 5")


def test_every_variant_of_pmanet_is_in_a_table() -> None:
    used = {row.variant for table in TABLES.values() for row in table.rows}
    assert set(PMANET_VARIANTS) <= used


@pytest.mark.parametrize(
    "deviation",
    [
        "model.part_head.boxes=stripes",
        "model.part_head.attention.kind=none",
        "loss.uncertainty_from_epoch=1 loss.fixed_weights=[2,1,1,1,1]",
        "model.learned_loss_weights=false loss.uncertainty_from_epoch=null training.optimizer.loss_weight_rate=1",
        "evaluation.retrieval_weights=[1,2,3]",
        "model.global_head=null",
    ],
)
def test_a_base_that_is_not_the_whole_of_pmanet_is_refused(deviation: str) -> None:
    with pytest.raises(ValueError, match=f"the configuration sets .*{deviation.split('=')[0]}.*: remove it"):
        tables_of(with_overrides(BASE, deviation.split()), ["methods"])


@pytest.mark.parametrize("table", ["5", "6", "methods"])
def test_a_base_that_is_re_ranked_is_refused(table: str) -> None:
    with pytest.raises(ValueError, match=r"without re-ranking, .*: evaluation\.rerank=null"):
        tables_of(with_overrides(BASE, ["evaluation.rerank={k1: 20, k2: 6, weight: 0.3}"]), [table])


def test_a_variant_that_the_base_rules_out_is_named() -> None:
    short = with_overrides(BASE, ["training.loop.epochs=1", "evaluation.every_epochs=1"])
    with pytest.raises(ValueError, match=r"(?s)variant 'late-hul': .*uncertainty_from_epoch is 1"):
        variant_of(short, "late-hul", 0)


@pytest.mark.parametrize("deviation", ["model.planes={}", "evaluation.partial_tasks=true"])
def test_variants_say_what_they_are_whatever_the_base_adds(deviation: str) -> None:
    base = with_overrides(BASE, [deviation])
    runs = {variant: variant_of(base, variant, 0) for variant in VARIANTS}
    assert len({digest(run) for run in runs.values()}) == len(VARIANTS)
    for variant, run in runs.items():
        assert not run.evaluation.partial_tasks
        if isinstance(run, PMNetExperiment):
            assert (run.model.planes is not None) == (variant == "pmanet-ppt")
    fixed = runs["fixed-1"]
    assert isinstance(fixed, PMNetExperiment)
    assert fixed.loss.fixed_weights == (1, 1, 1, 1, 1)


def test_ppts_variants_need_planes() -> None:
    base = load_experiment(None, ["model.planes=null"], Experiment)
    assert variant_of(base, "baseline", 0).model.planes is None  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"'front' is one of PPT, but .* model\.planes=null"):
        variant_of(base, "front", 0)
