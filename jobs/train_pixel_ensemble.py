"""Train the pixel-space ensemble that PPT is compared with (Table 6): a network of whole images and one of each plane.

    python jobs/train_pixel_ensemble.py --config jobs/configs/ppt_veri776.yaml name=pixel-veri776
    python jobs/train_pixel_ensemble.py --config jobs/configs/demo.yaml name=pixel --pictures planes.png --sets-only

Configuration and overrides are those of the plain baseline (jobs/train_ppt.py; model.planes=null is set here). Makes
the images of each plane beside data.shards, trains NAME-global, NAME-front, NAME-back, NAME-side and NAME-top and
writes the figures to RUNS/NAME/ensemble.json. Started again it does what is missing, and nothing twice.

Exit codes: 0 done, 2 configuration or cluster, 3 data, 4 failed and resumable, 130 interrupted (Ctrl-C), 143 terminated
(SIGTERM).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.command_line import exit_code, set_up_logging
from cluster.pixel_ensemble import draw_plane_sets, make_plane_sets, plane_image_config, train_pixel_ensemble
from cluster.resources import ray_connection
from cluster.trainer import with_absolute_addresses
from reid.build.plane_images import PlaneImageConfig
from reid.config import Experiment, load_experiment
from reid.settings_file import read_settings


def main() -> int:
    """Trains and evaluates what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a setting of the baseline's runs")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of the baseline (jobs/configs/)")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="setting of the plane images (reid.build.plane_images.PlaneImageConfig), such as height=256; may be"
        " repeated; default size: that of data.transform",
    )
    parser.add_argument("--plane-sets", metavar="FOLDER", help="where their sets go; default: beside data.shards")
    parser.add_argument(
        "--global-run", metavar="NAME", help="a finished baseline run that serves as the global network"
    )
    parser.add_argument("--pictures", type=Path, metavar="FILE", help="write a picture of plane images (.png or .jpg)")
    parser.add_argument("--sets-only", action="store_true", help="make the plane images and stop")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    return exit_code(lambda: _train(arguments), "the same command continues")


def _train(arguments: argparse.Namespace) -> None:
    experiment: Experiment = load_experiment(arguments.config, [*arguments.overrides, "model.planes=null"])
    if arguments.sets_only and arguments.global_run:
        raise ValueError("--global-run has nothing to do with --sets-only: remove one of the two")
    size = plane_image_config(experiment).model_dump(mode="json")
    images = read_settings(PlaneImageConfig, arguments.image, size)
    with ray_connection():
        if arguments.pictures or arguments.sets_only:
            experiment = with_absolute_addresses(experiment)
            sets, _ = make_plane_sets(experiment, images, folder=arguments.plane_sets)
            if arguments.pictures:
                draw_plane_sets(experiment, sets, arguments.pictures)
        if not arguments.sets_only:
            train_pixel_ensemble(
                experiment, images=images, global_run=arguments.global_run, plane_sets=arguments.plane_sets
            )


if __name__ == "__main__":
    sys.exit(main())
