"""Pack a raw data set into shards: parallel on Ray, or in this process with --no-ray (small sets).

    python jobs/make_shards.py data/VeRi data/veri776-shards
    python jobs/make_shards.py /data/real-vehicles data/real-shards --no-ray name=real-vehicles
    ray job submit --working-dir . -- python jobs/make_shards.py /data/VERI-Wild s3://bucket/veriwild max_side=512

Settings of packing (reid.data.shards.PackConfig) follow as key=value, those of the reader
(reid.data.readers.DatasetConfig) as source.key=value; those that change what is in the set are recorded in its
manifest. On Ray all nodes must see a local source and target under the same paths. An interrupted run continues when it
is started again; a finished one is left as it is. Ends with 0 when the set is there, 2 when not.
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack

from reid.build.progress import progress_bar
from reid.data.manifest import Manifest
from reid.data.readers import DatasetConfig, detect_format, read_dataset
from reid.data.shards import PackConfig, ShardResult, pack_shards
from reid.data.staging import RunTasks, run_in_this_process
from reid.settings_file import read_settings


def pack(arguments: argparse.Namespace) -> Manifest:
    """Reads the raw data set and packs it."""
    config, dataset, target = *settings_of(arguments), arguments.target
    if not arguments.no_ray:
        from cluster.resources import absolute_address

        keypoints = dataset.keypoints and absolute_address("--keypoints", dataset.keypoints)
        dataset = dataset.model_copy(update={"root": absolute_address("source", dataset.root), "keypoints": keypoints})
        target = absolute_address("target", target)
    records = read_dataset(dataset)
    with ExitStack() as stack:
        run_tasks: RunTasks = run_in_this_process
        if not arguments.no_ray:
            from cluster.resources import ray_connection
            from cluster.shard_tasks import run_on_ray

            stack.enter_context(ray_connection())
            run_tasks = run_on_ray
        draw = stack.enter_context(progress_bar("packing shards"))

        def show(done: int, total: int, _: ShardResult) -> None:
            draw(done, total)

        return pack_shards(
            records,
            target,
            config,
            source=dataset.content_options(),
            run_tasks=run_tasks,
            overwrite=arguments.overwrite,
            progress=show,
        )


def settings_of(arguments: argparse.Namespace) -> tuple[PackConfig, DatasetConfig]:
    """How to pack, and what."""
    about_source = [text.removeprefix("source.") for text in arguments.settings if text.startswith("source.")]
    config = read_settings(PackConfig, [text for text in arguments.settings if not text.startswith("source.")])
    source = {"format": arguments.format or detect_format(arguments.source), "root": arguments.source}
    return config, read_settings(DatasetConfig, about_source, {**source, "keypoints": arguments.keypoints})


def main() -> int:
    """Packs what the command line names and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="raw data set: its folder, or a .csv or .parquet table")
    parser.add_argument("target", help="folder to make: local path, s3:// or gs://")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of packing")
    parser.add_argument(
        "--format", help="veri776, vehicleid, veriwild, real-vehicles or table; found out when not given"
    )
    parser.add_argument("--keypoints", help="keypoint file, or folder with both, when not beside the images")
    parser.add_argument("--no-ray", action="store_true", help="pack in this process")
    parser.add_argument("--overwrite", action="store_true", help="replace another shard set at the target")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        manifest = pack(arguments)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for split, count in manifest.counts.items():
        print(
            f"{split:8} {count:9,} of {manifest.source_counts[split]:,} images, {manifest.identities[split]:,} vehicles"
        )
    print("skipped ", ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items()) or "none")
    print("repaired", ", ".join(f"{count} {kind}" for kind, count in manifest.repairs.items()) or "none")
    print(f"{len(manifest.shards)} shards, {manifest.num_bytes / 1e6:,.1f} MB in {arguments.target}, {manifest.hash}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
