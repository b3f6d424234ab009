"""Results: from trials to figures, to JSON and back, to one table."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from reid.evaluation.extract import join_embeddings, select_embeddings
from reid.evaluation.metrics import RetrievalMetrics
from reid.evaluation.protocols import Trial
from reid.evaluation.results import RetrievalResult, results_markdown, results_rich, results_table
from reid.evaluation.trials import evaluate_trials, make_result, mean_metrics
from tests.unit.evaluation.small_sets import random_embeddings


def metrics(value, num_valid=1678):
    return RetrievalMetrics(
        mAP=value,
        cmc={1: value + 0.1, 5: value + 0.15, 10: value + 0.17},
        mINP=value / 2,
        num_queries=1678,
        num_valid_queries=num_valid,
    )


def result(**changes):
    defaults = {"protocol": "veri776", "metrics": metrics(0.806), "checkpoint_hash": "c0ffee", "manifest_hash": "beef"}
    return RetrievalResult(**{**defaults, **changes})


@pytest.fixture(scope="module")
def drawn():
    """Two drawn trials over 40 images."""
    embeddings = join_embeddings([random_embeddings(1, 40, num_ids=10)])
    trials = []
    for seed in (0, 1):
        _, gallery = np.unique(embeddings.vehicle_ids[:: 1 - 2 * seed], return_index=True)
        gallery = gallery if seed == 0 else 39 - gallery
        trials.append(
            Trial(
                name=f"seed {seed}",
                query_rows=np.setdiff1d(np.arange(40), gallery),
                gallery_rows=gallery,
                remove_junk=False,
                is_drawn=True,
            )
        )
    return embeddings, trials


def test_several_trials_give_mean_deviation_and_the_drawn_lists(drawn):
    embeddings, trials = drawn
    ranks = [trial.base for trial in evaluate_trials(embeddings, trials)]
    actual = make_result("vehicleid-small", trials, ranks, checkpoint_hash="c", manifest_hash="m")

    values = [trial.mAP for trial in actual.trials]
    assert values[0] != values[1]
    assert actual.metrics.mAP == pytest.approx(np.mean(values))
    assert actual.deviations()["mAP"] == pytest.approx(np.std(values))
    assert actual.drawn_galleries["seed 1"] == tuple(trials[1].gallery_rows.tolist())
    assert "mAP is the mean reciprocal rank" in actual.notes[0]


def test_map_of_vehicleid_is_the_mean_reciprocal_rank(drawn):
    embeddings, trials = drawn
    ranks = evaluate_trials(embeddings, trials[:1])[0].base
    actual = make_result("vehicleid-small", trials[:1], [ranks], checkpoint_hash="c", manifest_hash="m")
    query, gallery = (select_embeddings(embeddings, rows) for rows in (trials[0].query_rows, trials[0].gallery_rows))
    similarity = query.features.astype(np.float64) @ gallery.features.T.astype(np.float64)
    own = similarity[np.arange(len(query)), np.searchsorted(gallery.vehicle_ids, query.vehicle_ids)]
    expected = np.mean(1 / (1 + (similarity > own[:, None]).sum(axis=1)))
    assert actual.metrics.mAP == pytest.approx(expected)


def test_a_single_trial_is_its_own_mean():
    assert mean_metrics([metrics(0.5)]) == metrics(0.5)
    assert result().deviations() == {}


@pytest.mark.parametrize(
    "example",
    [
        result(),
        result(
            name="epoch 10",
            notes=("camera unknown: scored without junk removal",),
            trials=(metrics(0.8), metrics(0.82)),
            trial_names=("seed 0", "seed 1"),
            drawn_galleries={"seed 0": (1, 5), "seed 1": (2, 4)},
            seconds=1.5,
            post_processing="re-ranking k1=80 k2=15 lambda=0.2",
            metrics=replace(metrics(0.81), trapezoid_mAP=0.7),
        ),
        result(reranked=result(post_processing="re-ranking k1=20 k2=6 lambda=0.3", metrics=metrics(0.83))),
    ],
    ids=["plain", "everything", "re-ranked"],
)
def test_json_gives_the_same_result_back(example):
    text = json.dumps(example.to_json(), allow_nan=False)
    assert RetrievalResult.from_json(json.loads(text)) == example
    assert json.loads(text)["figures"]["mAP"] == example.metrics.mAP


def test_foreign_json_is_refused():
    with pytest.raises(ValueError, match="of format 1, got None"):
        RetrievalResult.from_json({"mAP": 1})
    data = result().to_json()
    del data["manifest_hash"]
    with pytest.raises(ValueError, match="field 'manifest_hash'"):
        RetrievalResult.from_json(data)


def test_the_table_follows_the_convention():
    table = results_table([result(name="ppt"), result(name="baseline", metrics=metrics(0.7, 1600))])
    assert table.splitlines() == [
        "name      protocol         queries   mAP    R1    R5   R10  mINP",
        "--------  --------  --------------  ----  ----  ----  ----  ----",
        "ppt       veri776            1,678  80.6  90.6  95.6  97.6  40.3",
        "baseline  veri776   1,600 of 1,678  70.0  80.0  85.0  87.0  35.0",
    ]


def test_base_and_re_ranked_figures_stand_side_by_side():
    post = result(post_processing="re-ranking k1=80 k2=15 lambda=0.2", metrics=metrics(0.83))
    lines = results_table([post, result()]).splitlines()
    assert re.fullmatch(
        r"protocol  queries +mAP +R1 +R5 +R10 +mINP +mAP\+RR +R1\+RR +R5\+RR +R10\+RR +mINP\+RR", lines[0]
    )
    assert lines[2].split()[2:] == ["80.6", "90.6", "95.6", "97.6", "40.3", "83.0", "93.0", "98.0", "100.0", "41.5"]
    assert lines[3] == "note: +RR: re-ranking k1=80 k2=15 lambda=0.2"


def test_protocols_that_are_re_ranked_differently_share_the_columns():
    ours, other = "re-ranking k1=80 k2=15 lambda=0.2", "re-ranking k1=20 k2=6 lambda=0.3"
    lines = results_table(
        [
            result(reranked=result(post_processing=ours, metrics=metrics(0.83))),
            result(protocol="table", reranked=result(protocol="table", post_processing=other, metrics=metrics(0.82))),
        ]
    ).splitlines()
    assert lines[0].count("mAP+RR") == 1
    assert [line.split()[7] for line in lines[2:4]] == ["83.0", "82.0"]
    assert lines[4:6] == [f"note: veri776: +RR: {ours}", f"note: table: +RR: {other}"]


def test_notes_on_re_ranking_say_what_they_are_about_once():
    def row(name, protocol, kind):
        return result(name=name, protocol=protocol, reranked=result(name=name, protocol=protocol, post_processing=kind))

    def notes(*rows):
        return [line for line in results_table(rows).splitlines() if "+RR: " in line]

    occluded = "veri776, queries 20 % occluded"
    assert notes(row("a", "veri776", "x"), row("a", occluded, "x")) == ["note: +RR: x"]
    assert notes(row("a", "veri776", "x"), row("a", occluded, "x"), row("a", "table", "y")) == [
        "note: veri776: +RR: x",
        "note: table: +RR: y",
    ]
    assert notes(row("a", "veri776", "x"), row("b", "veri776", "y")) == [
        "note: a veri776: +RR: x",
        "note: b veri776: +RR: y",
    ]


def test_a_re_ranked_result_is_part_of_the_base_result():
    both = result(reranked=result(post_processing="re-ranking k1=20 k2=6 lambda=0.3", metrics=metrics(0.83)))
    assert (both.figures()["mAP"], both.figures()["mAP+RR"]) == (0.806, 0.83)
    assert both.headline() == 0.806
    lines = results_table([both, result(name="other")]).splitlines()
    assert lines[2].split()[2:] == ["80.6", "90.6", "95.6", "97.6", "40.3", "83.0", "93.0", "98.0", "100.0", "41.5"]
    assert lines[3].split()[-5:] == ["-"] * 5
    assert lines[4] == "note: +RR: re-ranking k1=20 k2=6 lambda=0.3"


def test_a_result_stored_before_re_ranking_is_read():
    data = result().to_json()
    del data["reranked"]
    assert RetrievalResult.from_json(data) == result()


def test_the_same_cell_twice_is_refused():
    with pytest.raises(ValueError, match="got two of '' 'veri776'"):
        results_table([result(), result()])


def test_deviations_notes_and_the_second_figure_are_printed():
    several = result(
        trials=(metrics(0.80), metrics(0.82)),
        trial_names=("a", "b"),
        notes=("one positive per query",),
        metrics=replace(metrics(0.81), trapezoid_mAP=0.79),
    )
    table = results_table([several])
    assert "81.0 +- 1.0" in table
    assert "note: veri776: one positive per query" in table
    assert "note: veri776: official trapezoid mAP 79.0" in table
    reranked = result(post_processing="20,6,0.3", metrics=replace(metrics(0.9), trapezoid_mAP=0.89))
    assert "note: veri776: official trapezoid mAP+RR 89.0" in results_table([reranked])


def test_a_note_of_every_protocol_is_printed_once():
    one, two = (result(protocol=name, notes=("flipped", f"of {name}")) for name in ("a", "b"))
    assert [line for line in results_table([one, two]).splitlines() if line.startswith("note")] == [
        "note: all: flipped",
        "note: a: of a",
        "note: b: of b",
    ]


def test_markdown_and_rich_show_the_same_numbers():
    markdown = results_markdown([result(name="ppt")])
    assert "| ppt | veri776 | 1,678 | 80.6 | 90.6 | 95.6 | 97.6 | 40.3 |" in markdown.splitlines()
    console = Console(width=120, file=io.StringIO())
    console.print(results_rich([result(name="ppt")]))
    assert "80.6" in console.file.getvalue()
