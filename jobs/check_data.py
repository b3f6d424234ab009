"""Check a raw data set before packing it: counts, unreadable images, identities, names, keypoints.

    python jobs/check_data.py /data/real-vehicles
    python jobs/check_data.py data/VeRi --max-images 2000 --json report.json
    python jobs/check_data.py keypoint_test.txt          # a keypoint file alone, or a folder that holds only such files

Ends with 0 when the data set is fit for use (warnings included), 1 when a finding forbids training, 2 when nothing
could be checked.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import get_args

from reid.build.progress import progress_bar
from reid.data.doctor import DoctorConfig, check_keypoint_files, check_survey
from reid.data.doctor_report import DoctorReport
from reid.data.readers import DatasetConfig, Format, detect_format, survey_dataset
from reid.data.veri776 import KEYPOINT_FILES
from reid.storage import check_output_file


def keypoint_files(path: Path) -> list[Path]:
    """`path` as keypoint files alone: a text file, or a folder that holds nothing else to read; else none."""
    if path.is_file() and path.suffix.lower() == ".txt":
        return [path]
    files = [path / name for name in KEYPOINT_FILES if (path / name).is_file()]
    return files if files and not any(child.is_dir() for child in path.iterdir()) else []


def check(arguments: argparse.Namespace) -> DoctorReport:
    """The report on whatever lies at the path."""
    path = Path(arguments.path).expanduser()
    if arguments.format is None and (files := keypoint_files(path)):
        about_images = {
            "--keypoints": arguments.keypoints is not None,
            "--max-images": arguments.max_images is not None,
            "--allow-overlap": arguments.allow_overlap,
        }
        idle = [option for option, given in about_images.items() if given]
        if idle:
            raise ValueError(f"{idle[0]} does nothing where only keypoint files are checked: remove it")
        return check_keypoint_files(files, arguments.on_duplicate)
    values = {"format": arguments.format or detect_format(path), "root": str(path), "keypoints": arguments.keypoints}
    config = DatasetConfig.model_validate({**values, "on_duplicate": arguments.on_duplicate})
    options = DoctorConfig(max_images=arguments.max_images, allow_overlap=arguments.allow_overlap)
    with progress_bar("opening images") as show:
        return check_survey(survey_dataset(config), options, show)


def main() -> int:
    """Runs the doctor on the command line's path and prints its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="data set folder (or its parent), .csv or .parquet table, or keypoint file")
    parser.add_argument("--format", choices=get_args(Format), help="found out when not given")
    parser.add_argument(
        "--keypoints", metavar="PATH", help="keypoint file, or folder with both, when not beside the images"
    )
    parser.add_argument(
        "--on-duplicate",
        choices=("refuse", "last"),
        default="refuse",
        help="an image annotated in two ways is an error (refuse, the default), or its last line counts",
    )
    parser.add_argument(
        "--max-images", type=int, metavar="N", help="open only a drawn sample of this many files (0: none)"
    )
    parser.add_argument("--allow-overlap", action="store_true", help="only warn about vehicles in train and test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if arguments.max_images is not None and arguments.max_images < 0:
            raise ValueError(f"--max-images {arguments.max_images}: expected 0 or more")
        check_output_file("--json", arguments.json)
        report = check(arguments)
        print(report.to_text())
        if arguments.json is not None:
            arguments.json.write_text(report.to_json() + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
