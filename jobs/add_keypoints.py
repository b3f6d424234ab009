"""Add keypoints to a finished shard set by a trained detector: parallel on Ray, or in this process with --no-ray.

    python jobs/add_keypoints.py runs/keypoints/checkpoints/step-00003570 data/veriwild-shards data/veriwild-keypoints
    python jobs/add_keypoints.py CHECKPOINT s3://bucket/vehicleid s3://bucket/vehicleid-keypoints network.batch_size=128

CHECKPOINT is a checkpoint folder of jobs/train_keypoints.py; its visibility thresholds are those that its own run's
evaluation fitted (a checkpoint without any is refused). Settings follow as key=value, see
reid.build.added_keypoints.KeypointAdditionConfig. GPUs are used where the cluster has some, in bf16. The source stays
as it is; the target is a complete set of its own, with the same images in the same order. An interrupted run continues
when it is started again; a finished one is left as it is. A detector that does not know such images, so that most show
no plane, is refused after the first shards (on object stores --overwrite has deleted the old set by then).
Exit codes: 0 done, 2 call, 3 no whole shard set or absurd plane rates, 4 a worker failed.
"""

from __future__ import annotations

import argparse
import sys

import torch

from cluster.command_line import exit_code, set_up_logging
from cluster.enrichment_job import Work, add_arguments, enrich, network_work
from reid.build.added_keypoints import (
    AbsurdRates,
    AddedKeypoints,
    KeypointAdditionConfig,
    rate_warnings,
    rates_table,
)
from reid.build.addition_pictures import picture_of_keypoints
from reid.build.keypoint_evaluation import load_trained_detector
from reid.build.network_additions import GpuCheck
from reid.data.shard_set import open_shards
from reid.settings_file import read_settings
from reid.storage import open_location
from reid.visual.mosaic import save_picture


def main() -> int:
    """Adds keypoints as the command line says and prints the counts and the plane table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="checkpoint folder of a keypoint detector: local path, s3:// or gs://")
    add_arguments(parser, "keypoints")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    return exit_code(lambda: _add(arguments), "start it again to continue")


def _add(arguments: argparse.Namespace) -> None:
    config = read_settings(KeypointAdditionConfig, arguments.settings)
    trained = load_trained_detector(open_location(arguments.checkpoint), torch.device("cpu"))

    def decide(gpus_have_bf16: GpuCheck | None) -> Work:
        return network_work(
            lambda run: AddedKeypoints(trained, run, config),
            config.network,
            gpus_have_bf16=gpus_have_bf16,
            watch=AbsurdRates(config),
        )

    enriched = enrich(arguments, "keypoints", decide)
    print(enriched.summary())
    means = enriched.manifest.additions[-1].means
    print(rates_table(means))
    for warning in rate_warnings(means):
        print(f"warning: {warning}")
    if arguments.pictures:
        with open_shards(arguments.target) as shards:
            save_picture(picture_of_keypoints(shards, arguments.num_pictures), arguments.pictures)


if __name__ == "__main__":
    sys.exit(main())
