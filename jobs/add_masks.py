"""Add masks and part boxes to a finished shard set: parallel on Ray, or in this process with --no-ray (small sets).

    python jobs/add_masks.py --coarse data/veri776-shards data/veri776-coarse --pictures coarse.png
    python jobs/add_masks.py --panet runs/panet-veri776/checkpoints/step-... data/veri776-coarse data/veri776-parts
    python jobs/add_masks.py --stripes 3 data/veri776-coarse data/veri776-stripes
    ray job submit --working-dir . -- python jobs/add_masks.py --coarse s3://bucket/veriwild s3://bucket/veriwild-coarse

--coarse: masks by GrabCut, with an ellipse where it fails (counted by reason). Settings as key=value:
  reid.data.coarse_masks.CoarseMaskConfig, such as iterations=3.
--panet CHECKPOINT: refined masks and part boxes by a PANet (jobs/train_panet.py). GPUs are used where the cluster has
  some, in bf16. Settings: reid.build.added_parts.PartAdditionConfig, such as parts.num_parts=4 network.batch_size=128.
--stripes K: boxes that divide every image into K stripes, the ablation's alternative to PANet; masks stay.

What the set holds of the same kind is replaced. The source stays as it is; the target is a complete set of its own,
with the same images in the same order. An interrupted run continues when it is started again; a finished one is left as
it is. Exit codes: 0 done, 2 call, 3 the source is no whole shard set, 4 a worker failed.
"""

from __future__ import annotations

import argparse
import sys

import torch

from cluster.command_line import exit_code, set_up_logging
from cluster.enrichment_job import Work, add_arguments, enrich, network_work
from reid.build.added_parts import AddedParts, PartAdditionConfig, UniformStripes
from reid.build.addition_pictures import picture_of_masks
from reid.build.evaluation import load_trained_model
from reid.build.part_pictures import picture_of_parts
from reid.contracts import Settings
from reid.data.coarse_masks import CoarseMaskConfig, CoarseMasks
from reid.data.shard_set import open_shards
from reid.parts import MAX_PARTS
from reid.settings_file import read_settings
from reid.storage import open_location
from reid.visual.mosaic import save_picture


def main() -> int:
    """Adds what the command line names and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--coarse", action="store_true", help="masks by GrabCut")
    kinds.add_argument("--panet", metavar="CHECKPOINT", help="masks and part boxes by a PANet: its checkpoint folder")
    kinds.add_argument("--stripes", type=int, metavar="K", help="boxes that divide every image into K stripes")
    add_arguments(parser, "masks")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    return exit_code(lambda: _add(arguments), "start it again to continue")


def _add(arguments: argparse.Namespace) -> None:
    if arguments.panet:
        _add_parts(arguments)
        return
    if arguments.coarse:
        config = read_settings(CoarseMaskConfig, arguments.settings)
        enriched = enrich(arguments, "masks", lambda gpus_have_bf16: Work(CoarseMasks(config)))
    else:
        read_settings(Settings, arguments.settings)  # refuses any: stripes have none
        if not 1 <= arguments.stripes <= MAX_PARTS:
            raise ValueError(f"--stripes {arguments.stripes}: expected 1 to {MAX_PARTS}")
        enriched = enrich(arguments, "boxes", lambda gpus_have_bf16: Work(UniformStripes(arguments.stripes)))
    print(enriched.summary())
    if arguments.pictures:
        with open_shards(arguments.target) as shards:
            save_picture(picture_of_masks(shards, arguments.num_pictures), arguments.pictures)


def _add_parts(arguments: argparse.Namespace) -> None:
    config = read_settings(PartAdditionConfig, arguments.settings)
    trained = load_trained_model(open_location(arguments.panet), torch.device("cpu"))
    enriched = enrich(
        arguments,
        "parts",
        lambda gpus_have_bf16: network_work(
            lambda run: AddedParts(trained, run, config), config.network, gpus_have_bf16=gpus_have_bf16
        ),
    )
    print(enriched.summary())
    if arguments.pictures:
        with open_shards(arguments.source) as shards:  # the source still holds the coarse masks
            trained.model.cpu()
            save_picture(picture_of_parts(trained, shards, config, arguments.num_pictures), arguments.pictures)


if __name__ == "__main__":
    sys.exit(main())
