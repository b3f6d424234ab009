"""Compare masks and part boxes of shard sets with the true masks of another set of the same images.

    python jobs/compare_masks.py data/city-shards data/city-coarse data/city-parts --split query --split gallery

Prints intersection over union and, where the sets have part boxes, how often their centres lie on the vehicle. Exit
codes: 0 done, 2 call, 3 the sets are not of the same images or lack masks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.command_line import exit_code, set_up_logging
from reid.build.mask_comparison import compare_masks
from reid.build.progress import progress_bar
from reid.contracts import DataError
from reid.data.shard_set import open_shards
from reid.evaluation.results import ResultRows, plain_table

COLUMNS = ("IoU", "median", "lowest 5 %", "flagged", "centres inside", "images with all inside")


def main() -> int:
    """Compares what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", help="set with the true masks")
    parser.add_argument("sets", nargs="+", metavar="set", help="sets to compare with it")
    parser.add_argument(
        "--split", action="append", choices=["train", "query", "gallery", "test"], help="only these images; may be"
        " repeated"
    )  # fmt: skip
    arguments = parser.parse_args()
    set_up_logging()
    return exit_code(lambda: _compare(arguments), "nothing was written")


def _compare(arguments: argparse.Namespace) -> None:
    splits = tuple(arguments.split) if arguments.split else None
    rows = []
    try:
        with open_shards(arguments.truth) as truth:
            for name in arguments.sets:
                with open_shards(name) as shards, progress_bar(f"comparing {Path(name).name}") as draw:
                    comparison = compare_masks(truth, shards, splits, draw)
                figures = comparison.figures()
                cells = [f"{100 * figures[column]:.1f}" if column in figures else "-" for column in COLUMNS]
                rows.append((Path(name).name, f"{len(comparison.keys):,}", *cells))
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
    print(plain_table(ResultRows(("set", "images", *COLUMNS), tuple(rows), ())))


if __name__ == "__main__":
    sys.exit(main())
