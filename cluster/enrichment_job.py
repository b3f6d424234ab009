"""What the jobs that add something to a finished shard set have in common: options, Ray, progress, summary."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.resources import absolute_address, has_gpus, ray_connection
from cluster.shard_tasks import run_on_ray
from reid.build.network_additions import GpuCheck, NetworkRun, NetworkRunConfig, resolve_run, this_gpu_has_bf16
from reid.build.progress import progress_bar
from reid.data.additions import Enrichment
from reid.data.enrichment import enrich_shards
from reid.data.manifest import Manifest
from reid.data.staging import RunTasks, ShardResult, run_in_this_process

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png")
SHARE_TO_ASK = 0.01
"""Of a GPU, for a task that only asks what it can do."""


def add_arguments(parser: argparse.ArgumentParser, of: str) -> None:
    """The arguments of every such job.

    Args:
        parser: To add them to.
        of: What is added, for the help.
    """
    parser.add_argument("source", help="folder of the set: local path, s3://, gs:// or http(s)://")
    parser.add_argument("target", help="folder to make: local path, s3:// or gs://")
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"settings of the {of}")
    parser.add_argument("--no-ray", action="store_true", help="compute in this process")
    parser.add_argument("--overwrite", action="store_true", help="replace another shard set at the target")
    parser.add_argument("--pictures", type=Path, metavar="FILE", help=f"write a picture of {of} (.png or .jpg)")
    parser.add_argument("--num-pictures", type=int, default=24, help="images in it")


Watch = Callable[[int, int, ShardResult], None]
"""Sees images done, all images and each shard's result; may raise to end the job."""


def _nothing(done: int, total: int, result: ShardResult) -> None:
    """For work that nobody watches."""


@dataclass(frozen=True)
class Work:
    """What a job has decided to do once it knows the machines."""

    enrichment: Enrichment
    watch: Watch = _nothing
    num_cpus: int = 1
    """Of each task."""
    num_gpus: float = 0.0
    """Of each task."""


def network_work(
    enrichment: Callable[[NetworkRun], Enrichment],
    config: NetworkRunConfig,
    *,
    gpus_have_bf16: GpuCheck | None,
    watch: Watch = _nothing,
) -> Work:
    """The work of a network: where and how exactly it runs, decided for the machines there are."""
    run = resolve_run(config, gpus_have_bf16=gpus_have_bf16)
    gpus = config.gpus_per_task if run.device == "cuda" else 0.0
    return Work(enrichment(run), watch, num_cpus=config.cpus_per_task, num_gpus=gpus)


def gpus_have_bf16() -> bool:
    """Whether the GPUs of every node that has some now compute in bf16: a small task asks on each of them.

    A cluster that grows may have none yet; then the first one that comes is asked.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) > 0]
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes] or ["DEFAULT"]
    ask = ray.remote(num_cpus=0, num_gpus=SHARE_TO_ASK)(this_gpu_has_bf16)
    return all(ray.get([ask.options(scheduling_strategy=place).remote() for place in places]))


@dataclass(frozen=True)
class Enriched:
    """A set that holds what was added."""

    manifest: Manifest
    target: str
    num_new: int
    """Images that this call did; the others were there from an earlier one."""
    seconds: float
    """Wall-clock time."""

    def summary(self) -> str:
        """A line a subject, for people."""
        addition, manifest = self.manifest.additions[-1], self.manifest
        speed = f"{self.num_new:,} now, {self.num_new / self.seconds:,.1f} a second"
        flagged = ", ".join(f"{count:,} {kind}" for kind, count in addition.problems.items())
        lines = {
            "images": f"{manifest.num_images:,} ({speed if self.num_new else 'all there before'})",
            "added": ", ".join(f"{count:,} {kind}" for kind, count in addition.members.items()),
            "flagged": flagged or "none",
            **{name.replace("_", " "): f"{mean:.3f} on average" for name, mean in addition.means.items()},
            "made by": f"{addition.name}: {addition.version}",
            "set": f"{len(manifest.shards)} shards, {manifest.num_bytes / 1e6:,.1f} MB in {self.target},"
            f" {manifest.hash}",
        }
        width = max(len(name) for name in lines) + 2
        return "\n".join(f"{name:{width}}{text}" for name, text in lines.items())


def enrich(arguments: argparse.Namespace, of: str, decide: Callable[[GpuCheck | None], Work]) -> Enriched:
    """Adds what was decided to the set that the command line names, with progress.

    Args:
        arguments: Parsed, from `add_arguments`.
        of: What is added.
        decide: Whether the GPUs compute in bf16, None when there are none -> the work.

    Raises:
        DataError, ValueError: As `enrich_shards`, and for a picture of another kind.
    """
    if arguments.pictures:
        _check_pictures(arguments.pictures, arguments.num_pictures)
    source, target = absolute_address("source", arguments.source), absolute_address("target", arguments.target)
    num_new = 0
    with ExitStack() as stack:
        if arguments.no_ray:
            work = decide(this_gpu_has_bf16 if torch.cuda.is_available() else None)
            run_tasks: RunTasks = run_in_this_process
        else:
            stack.enter_context(ray_connection())
            work = decide(gpus_have_bf16 if has_gpus() else None)
            run_tasks = partial(run_on_ray, num_cpus=work.num_cpus, num_gpus=work.num_gpus)
        draw = stack.enter_context(progress_bar(of))

        def show(done: int, total: int, result: ShardResult) -> None:
            nonlocal num_new
            num_new += 0 if result.kept else result.info.count
            draw(done, total)
            work.watch(done, total, result)

        started = time.monotonic()
        manifest = enrich_shards(
            source,
            target,
            work.enrichment,
            run_tasks=run_tasks,
            overwrite=arguments.overwrite,
            progress=show,
        )
        return Enriched(manifest, target, num_new, time.monotonic() - started)


def _check_pictures(path: Path, count: int) -> None:
    """Refuses before the work what would fail after it."""
    if path.suffix.lower() not in PICTURE_ENDINGS:
        raise ValueError(f"--pictures {path}: expected a name that ends in .jpg or .png")
    if count < 1:
        raise ValueError(f"--num-pictures {count}: expected 1 or more")
    absolute_address("--pictures", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
