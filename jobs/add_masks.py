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

from cluster.command_line import exit_code, set_up_logging
from jobs.enrichment_job import Work, add_arguments, enrich
from reid.build.addition_pictures import picture_of_masks
from reid.data.coarse_masks import CoarseMaskConfig, CoarseMasks
from reid.data.shard_set import open_shards
from reid.settings_file import read_settings
from reid.visual.mosaic import save_picture


def main() -> int:
    """Adds what the command line names and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--coarse", action="store_true", help="masks by GrabCut")
    add_arguments(parser, "masks")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    return exit_code(lambda: _add(arguments), "start it again to continue")


def _add(arguments: argparse.Namespace) -> None:
    config = read_settings(CoarseMaskConfig, arguments.settings)
    enrich(arguments, "masks", lambda has_gpus: Work(CoarseMasks(config)))
    if arguments.pictures:
        with open_shards(arguments.target) as shards:
            save_picture(picture_of_masks(shards, arguments.num_pictures), arguments.pictures)


if __name__ == "__main__":
    sys.exit(main())
