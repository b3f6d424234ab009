"""A worker's part of a run, put back to where its newest checkpoint stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reid.build.training import build_training
from reid.config import Experiment, load_experiment
from reid.training.snapshot import Position, take_snapshot
from tests.synthetic_shards import pack_synthetic, small_config

CPU = torch.device("cpu")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    shards = pack_synthetic(tmp_path / "data", small_config(4, 2, 2), "four")
    return load_experiment(
        None,
        [
            f"runs={tmp_path / 'runs'}", f"data.shards={shards}", "model.backbone.name=resnet18",
            "data.transform.height=32", "data.transform.width=32", "data.transform.padding=2",
            "data.plan.identities_per_batch=4", "data.plan.images_per_identity=2", "data.loader.processes=0",
        ],
    )  # fmt: skip


def test_counters_go_on_where_the_checkpoint_left_them(experiment: Experiment) -> None:
    first = build_training(experiment, CPU)
    first.stream.skipped["image_truncated"] = 2
    first.store.failed = 3
    first.store.save(take_snapshot(first.step, Position(step=1), first.description, first.counters()))
    first.stream.close()

    second = build_training(experiment, CPU)
    assert second.mishaps() == {"samples_skipped/image_truncated": 2}
    assert second.store.failed == 3
    second.stream.skipped["image_truncated"] += 1
    second.stream.skipped["image_unreadable"] += 1
    expected = {"samples_skipped/image_truncated": 3, "samples_skipped/image_unreadable": 1, "checkpoints_failed": 3}
    assert second.counters() == expected
    second.stream.close()


def test_checkpoints_from_before_there_were_counters_start_them_at_0(experiment: Experiment) -> None:
    first = build_training(experiment, CPU)
    first.store.save(take_snapshot(first.step, Position(step=1), first.description))
    first.stream.close()
    second = build_training(experiment, CPU)
    assert second.counters() == {"checkpoints_failed": 0}
    second.stream.close()
