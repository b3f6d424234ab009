"""Draw a synthetic vehicle data set in VeRi-776's raw layout, with exact keypoints and masks.

    python jobs/make_synthetic.py --root data/synthetic
    python jobs/make_synthetic.py --root data/city --traffic 0.8
    python jobs/make_synthetic.py --root data/large --train-identities 576 --test-identities 200 --cameras 20

A folder that already holds the same data set is left as it is. Ends with 0 when the data set is there, 2 when not.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from reid.build.progress import progress_bar
from reid.data.synthetic import SyntheticConfig, write_synthetic_veri, written_config

OPTIONS = {
    "train-identities": "num_train_identities",
    "test-identities": "num_test_identities",
    "cameras": "num_cameras",
    "cameras-per-identity": "cameras_per_identity",
    "images-per-camera": "images_per_camera",
    "group-size": "group_size",
    "unique-share": "unique_share",
    "mark-scale": "mark_scale",
    "colour-cast": "colour_cast",
    "degradation": "degradation",
    "traffic": "traffic",
    "min-long-side": "min_long_side",
    "max-long-side": "max_long_side",
    "seed": "seed",
}


def parse() -> tuple[Path, SyntheticConfig]:
    """The folder and the configuration of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder to make")
    for option, field in OPTIONS.items():
        info = SyntheticConfig.model_fields[field]
        text = f"{(info.description or field.replace('_', ' ')).splitlines()[0]} (default {info.default})"
        parser.add_argument(
            f"--{option}",
            dest=field,
            type=float if info.annotation is float else int,
            metavar="X" if info.annotation is float else "N",
            help=text.replace("%", "%%"),
        )
    arguments = vars(parser.parse_args())
    root = arguments.pop("root")
    return root, SyntheticConfig.model_validate({name: value for name, value in arguments.items() if value is not None})


def main() -> int:
    """Draws the data set that the command line asks for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()
    try:
        root, config = parse()
        if written_config(root) == config:
            logging.info("%s already holds this data set", root)
            return 0
        with progress_bar("drawing vehicles") as show:
            write_synthetic_veri(root, config, show)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    logging.info("drawn in %.0f s", time.perf_counter() - start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
