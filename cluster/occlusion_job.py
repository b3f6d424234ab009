"""The options of jobs/evaluate.py about occluded queries, and the files that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.evaluation import evaluate_occluded
from reid.build.occlusion import SeverityResult, evaluate_occluded_here, parse_severities, refuse_parts_of_clean_images
from reid.build.occlusion_curve import check_picture_name, refuse_other_seed, write_curve
from reid.config import AnyExperiment, KeypointExperiment, ReidExperiment
from reid.data.occlusion import check_table_name, write_patches
from reid.progress import Stages
from reid.storage import Location, check_output_file


def add_occlusion_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("occluded queries")
    group.add_argument(
        "--occluded",
        action="append",
        metavar="SEVERITY",
        help="covered share of each query, such as 0.2; may be repeated or a list with commas; curve: 0.05 to 0.3",
    )
    group.add_argument("--occluded-seed", type=int, metavar="N", help="seed of the patches (default 0)")
    group.add_argument("--patches", type=Path, metavar="FILE", help="write every patch (.csv or .json)")
    group.add_argument("--curve", type=Path, metavar="FILE", help="draw mAP and R1 by severity (.png or .svg)")
    group.add_argument(
        "--curve-with", type=Path, action="append", default=[], metavar="FILE",
        help="draw the figures of this --output file, too; may be repeated",
    )  # fmt: skip


@dataclass(frozen=True)
class OcclusionJob:
    """What the options ask for."""

    severities: tuple[float, ...]
    seed: int
    patches: Path | None
    curve: Path | None
    curve_with: Sequence[Path]

    def evaluate(
        self, experiments: Sequence[ReidExperiment], checkpoint: Location, *, ray: bool, stages: Stages
    ) -> list[SeverityResult]:
        """Figures of clean and occluded queries under each protocol, on evaluation workers or in this process."""
        results: list[SeverityResult] = []
        name = checkpoint.name
        for experiment in experiments:
            if ray:
                results += evaluate_occluded(
                    experiment, checkpoint.uri, self.severities, self.seed, name=name, stages=stages
                )
            else:
                results += evaluate_occluded_here(
                    experiment, checkpoint, self.severities, self.seed, name=name, stages=stages
                )
        return results

    def write(self, results: Sequence[SeverityResult]) -> None:
        """The files that were asked for."""
        if self.patches is not None:
            write_patches([(r.protocol, r.patches) for r in results if r.patches is not None], self.patches)
        if self.curve is not None:
            write_curve(results, self.curve_with, self.curve)


def occlusion_job(arguments: argparse.Namespace, trained: AnyExperiment) -> OcclusionJob | None:
    """What the options ask for; None: nothing.

    Raises:
        ValueError: They contradict each other, or a file could not be written after the work.
    """
    seed, patches, curve = arguments.occluded_seed, arguments.patches, arguments.curve
    if not arguments.occluded:
        options = {"--occluded-seed": seed is not None, "--patches": patches, "--curve": curve}
        if given := [name for name, value in {**options, "--curve-with": arguments.curve_with}.items() if value]:
            raise ValueError(f"{given[0]} belongs to --occluded: give it severities, or curve")
        return None
    if isinstance(trained, KeypointExperiment):
        raise ValueError("--occluded: a keypoint detector has no queries; remove it")
    refuse_parts_of_clean_images(trained)
    severities = parse_severities(arguments.occluded)
    if seed is not None and seed < 0:
        raise ValueError(f"--occluded-seed {seed}: expected 0 or more")
    for option, path in (("--patches", patches), ("--curve", curve)):
        check_output_file(option, path)
    if patches is not None:
        check_table_name(patches)
    if curve is not None:
        check_picture_name(curve)
    elif arguments.curve_with:
        raise ValueError("--curve-with belongs to --curve: name the picture")
    for path in arguments.curve_with:
        refuse_other_seed(path, seed or 0)
    return OcclusionJob(severities, seed or 0, patches, curve, arguments.curve_with)
