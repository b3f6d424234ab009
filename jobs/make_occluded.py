"""Make a shard set whose queries are occluded: one colour patch on each (PMANet, section IV-E), the rest unchanged.

    python jobs/make_occluded.py data/veri776-shards data/veri776-occluded20 --severity 0.2 --pictures occluded.png
    python jobs/evaluate.py runs/ppt-veri776/checkpoints/step-... data.shards=data/veri776-occluded20

For looking at the queries, and for what must see them as files: masks and part boxes of occluded images
(jobs/add_masks.py on the new set) and other programs. For figures alone `jobs/evaluate.py --occluded` needs no copy of
the data; both give the same. The patch of an image follows from its key and the seed, and a larger severity covers
what a smaller one does. Occluded queries are stored as PNG, of the size that they had.

The manifest of the set says severity, seed and the hash of all patches; --patches writes them as CSV or JSON. The
source stays as it is. An interrupted run continues when it is started again; a finished one is left as it is. Exit
codes: 0 done, 2 call, 3 the source is no whole shard set or has no query split, 4 a worker failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.command_line import exit_code, set_up_logging
from cluster.enrichment_job import Work, add_arguments, enrich
from cluster.resources import absolute_address
from reid.build.occlusion_pictures import picture_of_occluded
from reid.contracts import DataError, Settings
from reid.data.occluded_queries import OccludedQueries
from reid.data.occlusion import OcclusionConfig, check_table_name, write_patches
from reid.data.shard_set import open_shards
from reid.settings_file import read_settings
from reid.visual.mosaic import save_picture


def main() -> int:
    """Occludes the queries of the set that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--severity", type=float, required=True, metavar="X", help="covered share of each query: 0.2")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the patches (default 0)")
    parser.add_argument("--patches", type=Path, metavar="FILE", help="write every patch (.csv or .json)")
    add_arguments(parser, "occluded queries")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    return exit_code(lambda: _make(arguments), "start it again to continue")


def _make(arguments: argparse.Namespace) -> None:
    read_settings(Settings, arguments.settings)  # refuses any: all there is has an option
    config = read_settings(OcclusionConfig, [f"severity={arguments.severity}", f"seed={arguments.seed}"])
    if arguments.patches:
        check_table_name(arguments.patches)
    try:
        source = open_shards(absolute_address("source", arguments.source))
    except (ValueError, OSError) as error:
        raise DataError(f"{arguments.source}: {error}") from error
    with source:
        queries = OccludedQueries(source, config)
        enriched = enrich(arguments, "occluded queries", lambda gpus_have_bf16: Work(queries))
        print(enriched.summary())
        print(f"patches  {queries.patches.covered():.1%} covered on average, sha256 {queries.patches.sha256}")
        if arguments.patches:
            write_patches([(source.manifest.name, queries.patches)], arguments.patches)
        if arguments.pictures:
            with open_shards(enriched.target) as target:
                save_picture(
                    picture_of_occluded(source, target, queries.patches, arguments.num_pictures), arguments.pictures
                )


if __name__ == "__main__":
    sys.exit(main())
