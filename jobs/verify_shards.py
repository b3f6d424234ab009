"""Check a shard set byte by byte: hashes, tar structure, unsafe members, duplicates, offsets, counts.

    python jobs/verify_shards.py data/veri776-shards
    python jobs/verify_shards.py s3://bucket/veriwild --decode

Ends with 0 when nothing is wrong, 1 when something is, 2 when the address makes no sense.
"""

from __future__ import annotations

import argparse
import logging
import sys

from reid.build.progress import progress_bar
from reid.data.verify import verify_shards


def main() -> int:
    """Verifies the set that the command line names and prints what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="folder of the set: local path, s3://, gs:// or http(s)://")
    parser.add_argument("--decode", action="store_true", help="also decode every image and mask")
    parser.add_argument("--most", type=int, default=50, metavar="N", help="problems to print in full (default 50)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        with progress_bar("verifying shards") as show:
            report = verify_shards(arguments.shards, decode=arguments.decode, progress=show)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for problem in report.problems[: arguments.most]:
        print(problem)
    if len(report.problems) > arguments.most:
        print(f"... and {len(report.problems) - arguments.most} more")
    print(f"{report.num_images:,} images in {report.num_shards} shards, {report.num_bytes / 1e6:,.1f} MB read")
    print("whole" if report.passed else "problems: " + ", ".join(f"{n} {kind}" for kind, n in report.counts.items()))
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
