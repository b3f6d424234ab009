"""Evaluate any checkpoint on evaluation workers, under one protocol or several.

    python jobs/evaluate.py runs/ppt-veri776/checkpoints/step-00141600
    python jobs/evaluate.py runs/ppt-wild/checkpoints/step-00302820 --protocol veriwild-small --protocol veriwild-large
    python jobs/evaluate.py runs/ppt-veri776/checkpoints/step-00141600 --occluded curve --curve occlusion.png
    ray job submit --working-dir . -- python jobs/evaluate.py /runs/a/checkpoints/step-00001200 data.shards=/data/other

Data set and settings are those of the run that trained the checkpoint unless key=value overrides say otherwise. Prints
the plan, progress and one table; `--output` writes figures, protocol and hashes as JSON, `--page` one HTML file with
rank lists of easy, median and hard queries. Images that several protocols share are embedded once (but not with
--occluded). A run that still trains keeps the checkpoint as long as it is evaluated. Exit codes as for training: 0,
2 (call), 3 (data), 4 (failed), 130 (Ctrl-C), 143 (SIGTERM).

--occluded SEVERITY also evaluates queries of which a colour patch covers that share of the area (0.2: 20 %), one patch
an image, its place, aspect and colour drawn from the image's key and --occluded-seed, larger severities around smaller
ones; the gallery stays clean. `curve` stands for 0.05,0.1,0.15,0.2,0.25,0.3. --patches writes the patches, --curve
draws mAP and R1 by severity, beside those that another checkpoint's --output holds (--curve-with).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.command_line import exit_code, set_up_logging
from cluster.evaluation_job import evaluate
from cluster.occlusion_job import add_occlusion_arguments
from reid.evaluation.protocols import PROTOCOLS


def main() -> int:
    """Evaluates what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="checkpoint folder or URL (runs/NAME/checkpoints/step-...)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a setting of the run")
    parser.add_argument(
        "--protocol", action="append", metavar="NAME", help=f"may be repeated; one of {', '.join(PROTOCOLS)}"
    )
    parser.add_argument(
        "--rerank",
        metavar="K1,K2,LAMBDA",
        help="also give re-ranked figures: numbers such as 80,15,0.2, or auto for those usual with each protocol",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE.html",
        help="page to write: figures, those of the last protocol on top, and rank lists of some queries",
    )
    add_occlusion_arguments(parser)
    parser.add_argument("--no-ray", action="store_true", help="evaluate in this process")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    return exit_code(lambda: evaluate(arguments), "give the command again")


if __name__ == "__main__":
    sys.exit(main())
