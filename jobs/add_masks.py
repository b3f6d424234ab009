"""Add masks to a finished shard set: parallel on Ray, or in this process with --no-ray (small sets).

    python jobs/add_masks.py --coarse data/veri776-shards data/veri776-coarse --pictures coarse.png
    python jobs/add_masks.py --coarse data/real-shards data/real-coarse --no-ray iterations=3
    ray job submit --working-dir . -- python jobs/add_masks.py --coarse s3://bucket/veriwild s3://bucket/veriwild-coarse

--coarse: masks by GrabCut, with an ellipse where it fails (counted by reason); masks that the set holds are replaced.
Settings (reid.data.coarse_masks.CoarseMaskConfig) follow as key=value. The source stays as it is; the target is a
complete set of its own, with the same images in the same order. An interrupted run continues when it is started again;
a finished one is left as it is. Exit codes: 0 done, 2 call, 3 the source is no whole shard set, 4 a worker failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from cluster.command_line import exit_code, set_up_logging
from cluster.precompute import run_on_ray
from cluster.resources import ray_connection
from reid.build.mask_pictures import picture_of_masks
from reid.build.progress import progress_bar
from reid.data.coarse_masks import CoarseMaskConfig, CoarseMasks
from reid.data.enrichment import RunTasks, enrich_shards, run_in_this_process
from reid.data.manifest import Manifest
from reid.data.shard_set import open_shards
from reid.data.shards import ShardResult
from reid.settings_file import read_settings
from reid.visual.mosaic import save_picture


def main() -> int:
    """Adds what the command line names and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--coarse", action="store_true", help="masks by GrabCut")
    parser.add_argument("source", help="folder of the set: local path, s3://, gs:// or http(s)://")
    parser.add_argument("target", help="folder to make: local path, s3:// or gs://")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the masks")
    parser.add_argument("--no-ray", action="store_true", help="compute in this process")
    parser.add_argument("--overwrite", action="store_true", help="replace another shard set at the target")
    parser.add_argument("--pictures", type=Path, metavar="FILE", help="write a picture of masks (.png or .jpg)")
    parser.add_argument("--num-pictures", type=int, default=24, help="images in it")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    return exit_code(lambda: _add(arguments), "start it again to continue")


def _add(arguments: argparse.Namespace) -> None:
    enrichment = CoarseMasks(read_settings(CoarseMaskConfig, arguments.settings))
    if arguments.pictures and arguments.pictures.suffix.lower() not in {".jpg", ".jpeg", ".png"}:
        raise ValueError(f"--pictures {arguments.pictures}: expected a name that ends in .jpg or .png")
    num_new = 0
    with ExitStack() as stack:
        run_tasks: RunTasks = run_in_this_process
        if not arguments.no_ray:
            stack.enter_context(ray_connection())
            run_tasks = run_on_ray
        draw = stack.enter_context(progress_bar("masks"))

        def show(done: int, total: int, result: ShardResult) -> None:
            nonlocal num_new
            num_new += 0 if result.kept else result.info.count
            draw(done, total)

        started = time.monotonic()
        manifest = enrich_shards(
            arguments.source,
            arguments.target,
            enrichment,
            run_tasks=run_tasks,
            overwrite=arguments.overwrite,
            progress=show,
        )
        seconds = time.monotonic() - started
    _print_summary(manifest, arguments.target, num_new, seconds)
    if arguments.pictures:
        with open_shards(arguments.target) as shards:
            save_picture(picture_of_masks(shards, arguments.num_pictures), arguments.pictures)


def _print_summary(manifest: Manifest, target: str, num_new: int, seconds: float) -> None:
    addition = manifest.additions[-1]
    speed = f"{num_new:,} now, {num_new / seconds:,.1f} a second" if num_new else "all there before"
    fallbacks = ", ".join(f"{count:,} {kind}" for kind, count in addition.problems.items())
    lines = {
        "images": f"{manifest.num_images:,} ({speed})",
        "added": ", ".join(f"{count:,} {kind}" for kind, count in addition.members.items()),
        "fallbacks": fallbacks or "none",
        **{name.replace("_", " "): f"{mean:.1%} on average" for name, mean in addition.means.items()},
        "made by": f"{addition.name}: {addition.version}",
        "set": f"{len(manifest.shards)} shards, {manifest.num_bytes / 1e6:,.1f} MB in {target}, {manifest.hash}",
    }
    for name, text in lines.items():
        print(f"{name:18} {text}")


if __name__ == "__main__":
    sys.exit(main())
