"""Images a second of coarse masks, keypoints and parts with one Ray task at a time and with two, and their ratio.

    python -m tests.benchmarks.bench_enrichment --coarse SHARDS
    python -m tests.benchmarks.bench_enrichment --keypoints CHECKPOINT SHARDS --parts CHECKPOINT SHARDS

Wall-clock time of whole sets, from the call to the finished manifest, on a Ray of its own with that many CPUs, kept on
as many cores (a task decodes on a second thread, so one task would use a second core). The start of Ray and of its
processes is left out, as a first run warms them up. Rounds alternate between one and two; median and spread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cluster.resources import ray_connection
from cluster.shard_tasks import run_on_ray
from reid.build.added_keypoints import AddedKeypoints, KeypointAdditionConfig
from reid.build.added_parts import AddedParts, PartAdditionConfig
from reid.build.evaluation import load_trained_model
from reid.build.keypoint_evaluation import load_trained_detector
from reid.build.network_additions import NetworkRunConfig, resolve_run
from reid.data.additions import Enrichment
from reid.data.coarse_masks import CoarseMasks
from reid.data.enrichment import enrich_shards
from reid.storage import open_location
from tests.benchmarks.machine import summary, write_result


@contextmanager
def on_cores(number: int) -> Iterator[None]:
    """Keeps this process, and those that it starts, on the first cores it has."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def images_per_second(source: str, enrichment: Enrichment, num_tasks: int, repeats: int) -> list[float]:
    """Of each run after the first, on a Ray of its own."""
    rates = []
    with tempfile.TemporaryDirectory() as folder, on_cores(num_tasks), ray_connection(num_cpus=num_tasks):
        for number in range(repeats + 1):
            started = time.monotonic()
            manifest = enrich_shards(source, str(Path(folder) / str(number)), enrichment, run_tasks=run_on_ray)
            if number > 0:
                rates.append(manifest.num_images / (time.monotonic() - started))
    return rates


def compare(name: str, source: str, enrichment: Enrichment, rounds: int, repeats: int) -> dict[str, Any]:
    """Rates with one and two tasks in turn, printed and returned."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for num_tasks, found in rates.items():
            found += images_per_second(source, enrichment, num_tasks, repeats)
    one, two = (summary(found) for found in rates.values())
    ratio = median(b / a for a, b in zip(rates[1], rates[2], strict=True))
    print(
        f"{name:10} one task {one.median:7.1f} images/s +-{100 * one.spread:.0f} %, "
        f"two {two.median:7.1f} +-{100 * two.spread:.0f} %: {ratio:.2f}x"
    )
    return {"one_task": one.median, "two_tasks": two.median, "ratio": ratio, "spread": max(one.spread, two.spread)}


def main() -> None:
    """Run and print a line for each kind asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coarse", metavar="SHARDS", help="some 100 images are enough")
    parser.add_argument("--keypoints", nargs=2, metavar=("CHECKPOINT", "SHARDS"))
    parser.add_argument("--parts", nargs=2, metavar=("CHECKPOINT", "SHARDS"))
    parser.add_argument("--rounds", type=int, default=3, help="each starts Ray twice")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs in a round, after one that is not")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if os.environ.get("RAY_ADDRESS"):
        parser.error("unset RAY_ADDRESS: this starts a Ray with one and one with two CPUs")
    run = resolve_run(NetworkRunConfig(device="cpu"), gpus_have_bf16=None)
    work: dict[str, tuple[str, Enrichment]] = {}
    if arguments.coarse:
        work["coarse"] = (arguments.coarse, CoarseMasks())
    if arguments.keypoints:
        checkpoint, source = arguments.keypoints
        detector = load_trained_detector(open_location(checkpoint), torch.device("cpu"))
        work["keypoints"] = (source, AddedKeypoints(detector, run, KeypointAdditionConfig()))
    if arguments.parts:
        checkpoint, source = arguments.parts
        network = load_trained_model(open_location(checkpoint), torch.device("cpu"))
        work["parts"] = (source, AddedParts(network, run, PartAdditionConfig()))
    if not work:
        parser.error("nothing to measure: give --coarse, --keypoints or --parts")
    results = {
        name: compare(name, source, enrichment, arguments.rounds, arguments.repeats)
        for name, (source, enrichment) in work.items()
    }
    if arguments.output:
        write_result(arguments.output, "enrichment", results)


if __name__ == "__main__":
    main()
