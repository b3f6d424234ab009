"""What Ray adds to a training step: the same worker code under Ray Train and in plain processes, two workers each.

Both build the run with `reid.build.training.build_training` and take the same steps on the same synthetic images; the
figure is the median of `step_seconds` over the rows of the log, without the first. Variants alternate, so that other
load hits both.

    python -m tests.benchmarks.bench_ray_overhead --rounds 2 --epochs 4
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cluster.resources import ray_connection
from cluster.trainer import train
from reid.build.metrics_log import read_metrics
from reid.build.run_folder import open_run
from reid.build.training import build_training
from reid.config import Experiment, load_experiment
from reid.contracts import IntervalResult
from reid.data.synthetic import SyntheticConfig
from tests.benchmarks.machine import write_result
from tests.processes import run
from tests.synthetic_shards import pack_synthetic

WORKERS = 2


def plain_worker(rank: int, world_size: int, experiment_json: dict[str, Any]) -> list[float]:
    """One worker of a run without Ray; seconds a step of each row of the log."""
    torch.set_num_threads(1)
    training = build_training(Experiment.model_validate(experiment_json), torch.device("cpu"))
    rows = [result for result in training.results() if isinstance(result, IntervalResult)]
    training.stream.close()
    return [row.metrics["step_seconds"] for row in rows]


def ray_seconds(experiment: Experiment) -> list[float]:
    """The same of a run under Ray Train."""
    train(experiment)
    rows = read_metrics(open_run(experiment).location)
    return [row["step_seconds"] for row in rows if row["kind"] == "interval"]


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--log-every", type=int, default=8, help="steps a row")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"plain": [], "ray": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = pack_synthetic(folder, SyntheticConfig(num_train_identities=32, num_test_identities=4), "bench")
        with ray_connection():
            for number in range(arguments.rounds):
                for variant in seconds:
                    experiment = load_experiment(
                        None,
                        [
                            f"name={variant}-{number}", f"runs={folder / 'runs'}", f"data.shards={shards}",
                            f"data.transform.height={arguments.size}", f"data.transform.width={arguments.size}",
                            "data.transform.padding=4", "model.backbone.name=resnet18",
                            f"training.loop.epochs={arguments.epochs}",
                            f"training.loop.log_every_steps={arguments.log_every}",
                            f"training.loop.checkpoint_every_epochs={arguments.epochs}", "evaluation.num_rank_lists=0",
                            f"evaluation.every_epochs={1000 * arguments.epochs}", f"cluster.num_workers={WORKERS}",
                            "cluster.cpus_per_evaluation_worker=0",
                        ],
                    )  # fmt: skip
                    if variant == "ray":
                        rows = ray_seconds(experiment)
                    else:
                        rows = run(plain_worker, WORKERS, experiment.model_dump(mode="json"), timeout_seconds=1800)[0]
                    seconds[variant] += rows[1:]
                    print(f"round {number + 1} {variant:5} {median(rows[1:]):.3f} s a step ({len(rows) - 1} rows)")
    ratio = median(seconds["ray"]) / median(seconds["plain"])
    print(f"Ray over plain processes: {ratio:.3f}")
    result = {"ratio": ratio, "workers": WORKERS, "size": arguments.size, "seconds": seconds}
    if arguments.output:
        write_result(arguments.output, "ray_overhead", result)


if __name__ == "__main__":
    main()
