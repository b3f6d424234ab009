"""The report of a run, and the check of its protocol: data sets that lack images or hold unreadable ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from reid.build.data import open_data
from reid.build.evaluation import check_evaluation
from reid.build.report import write_run_report
from reid.build.run_folder import RunFolder, open_run
from reid.config import Experiment, load_experiment, with_overrides
from reid.evaluation.metrics import RetrievalMetrics
from reid.evaluation.results import RetrievalResult
from tests.synthetic_shards import pack_synthetic, small_config


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    shards = pack_synthetic(tmp_path, small_config(4, 2, 2), "tiny")
    return load_experiment(None, ["name=tiny", f"runs={tmp_path / 'runs'}", f"data.shards={shards}"])


@pytest.fixture
def folder(experiment: Experiment) -> RunFolder:
    """A run with one evaluation and no checkpoint left."""
    folder = open_run(experiment)
    metrics = RetrievalMetrics(mAP=0.5, cmc={1: 0.5, 5: 1.0, 10: 1.0}, mINP=0.5, num_queries=2, num_valid_queries=2)
    result = RetrievalResult(protocol="veri776", metrics=metrics, checkpoint_hash="0" * 64, manifest_hash="1" * 64)
    folder.write_evaluation("step-00000010", {**result.to_json(), "examples": []})
    return folder


def damage_training_images(experiment: Experiment, count: int) -> None:
    """Overwrites the first images with zeros; sizes stay, and that is all that is checked on opening."""
    with open_data(experiment) as shards:
        index, files = shards.index, [shard.name for shard in shards.manifest.shards]
    for row in index.rows("train")[:count]:
        with (Path(experiment.data.shards) / files[index.shard[row]]).open("r+b") as file:
            file.seek(int(index.image_offset[row]))
            file.write(bytes(int(index.image_size[row])))


@pytest.mark.parametrize(("damaged", "planes_shown"), [(0, True), (1, True), (8, False)])
def test_unreadable_images_are_left_out(
    experiment: Experiment, folder: RunFolder, damaged: int, planes_shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    damage_training_images(experiment, damaged)
    with open_data(experiment) as shards:
        assert len(shards.index.rows("train")) == 8
        page = Path(write_run_report(experiment, folder, shards).removeprefix("file://")).read_text()
    assert ("the planes that PPT warps" in page) == planes_shown
    assert caplog.text.count("the report does without a picture") == damaged


def test_data_without_images_of_the_protocol_are_refused(experiment: Experiment) -> None:
    with open_data(experiment) as shards:
        check_evaluation(experiment, shards)
        with pytest.raises(ValueError, match="protocol 'vehicleid-small'"):
            check_evaluation(with_overrides(experiment, ["evaluation.protocol=vehicleid-small"]), shards)
