from __future__ import annotations

import re
from pathlib import Path

import pytest

from reid.build.data import check_train_data, open_data
from reid.build.run_plan import describe_plan
from reid.config import PMNetExperiment, load_experiment
from reid.contracts import DataError
from tests.synthetic_shards import pack_synthetic, small_config


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_synthetic(tmp_path_factory.mktemp("plan"), small_config(6, 2, 3), "six")


def test_the_plan_is_written_as_equations(shards: Path) -> None:
    experiment = load_experiment(
        None,
        [
            f"data.shards={shards}",
            "data.plan.identities_per_batch=6",
            "data.plan.images_per_identity=3",
            "cluster.num_workers=2",
            "training.loop.epochs=100",
        ],
    )
    with open_data(experiment) as opened:
        text = describe_plan(experiment, opened, device="cpu", resumed_from=None)
    assert "six: 18 images of 6 vehicles to train on" in text
    assert "18 = 6 identities x 3 images = 2 worker(s) x 9 images of 256x256 on cpu, bf16 (float32 on" in text
    assert "18 slots = 1 steps x 18 for 18 images" in text
    assert "100 steps = 1 x 100 epochs" in text
    assert "3.5e-05 -> 0.00035 over 10 epochs, then 3.5e-05 from epoch 41, 3.5e-06 from epoch 71" in text
    assert "resnet50, random weights, PPT planes with weights (0.5, 0.5, 0.3, 0.2)" in text


def test_a_combined_run_says_which_images_have_planes_and_parts(shards: Path) -> None:
    combined = load_experiment(
        None,
        [f"data.shards={shards}", "model.planes={}", "data.plan.identities_per_batch=6"],
        PMNetExperiment,
    )
    with open_data(combined) as opened:
        text = describe_plan(combined, opened, device="cpu", resumed_from=None)
    planes = r"front \d+ %, back \d+ %, side \d+ %, top \d+ %"
    assert re.search(rf"keypoints on 18 of 18 images, which show {planes}\n", text)
    assert "3 boxes each for 0 of 18 images; 18 without get uniform stripes" in text


def test_missing_shards_are_a_data_error_that_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.shards=.*gone"):
        open_data(load_experiment(None, [f"data.shards={tmp_path / 'gone'}"]))


def test_a_rate_that_moves_by_rounding_is_no_drop(shards: Path) -> None:
    schedule = ["training.loop.epochs=240", "training.schedule.floor=3.5e-7"]
    with open_data(load_experiment(None, [f"data.shards={shards}"])) as opened:
        experiment = load_experiment(None, [f"data.shards={shards}", "data.plan.identities_per_batch=6", *schedule])
        text = describe_plan(experiment, opened, device="cpu", resumed_from=None)
    (line,) = (line for line in text.splitlines() if "learning rate" in line)
    assert line.count("3.5e-07") == 1


def test_keypoints_that_show_no_plane_are_refused(tmp_path: Path, shards: Path) -> None:
    experiment = load_experiment(None, [f"data.shards={shards}"])
    with open_data(experiment) as opened:
        opened.index.keypoints[..., :2] = opened.index.keypoints[..., 1::-1]  # x and y exchanged: nothing faces us
        with pytest.raises(DataError, match=r"keypoints of 18 training images show no plane.*another order or unit"):
            check_train_data(experiment, opened)
