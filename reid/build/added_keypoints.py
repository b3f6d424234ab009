"""Keypoints for a shard set by a trained detector (METHOD 1.6), and the check that they make sense there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from reid.build.keypoint_evaluation import TrainedDetector
from reid.build.network_additions import NetworkRun, NetworkRunConfig, answer_in_batches
from reid.contracts import DataError, Settings
from reid.data.additions import Additions, Provenance, Sample
from reid.data.plane_table import visible_planes
from reid.data.staging import ShardResult
from reid.evaluation.keypoint_prediction import predict_keypoints
from reid.keypoints import PLANE_NAMES, veri_rate_with_substitutes

PLANE_RATE: Final = "plane/"
"""Beginning of the measures that tell whether an image shows a plane."""
NO_PLANE: Final = "no_plane"
FRONT_AND_BACK: Final = "front_and_back"
VISIBLE_KEYPOINTS: Final = "visible_keypoints"
ANNOTATION_AGREES: Final = "annotated_planes_agree"


class KeypointAdditionConfig(Settings):
    """How keypoints are added to a shard set."""

    annotated: Literal["replace", "keep"] = "replace"
    """What happens to keypoints that the set holds already. keep: only images without any are given some."""
    fitted_thresholds: bool = True
    """Refuse a checkpoint whose visibility thresholds no evaluation has fitted; false: take its configuration's."""
    network: NetworkRunConfig = NetworkRunConfig()
    """How the detector is run."""
    max_without_plane: float = Field(default=0.5, ge=0.0, le=1.0)
    """Refused when a larger share of the images shows no plane at all: the detector does not know such images. 1: never
    refused."""
    min_images_to_judge: int = Field(default=500, ge=1)
    """Images before that is judged; smaller sets are judged at their end."""


class AddedKeypoints:
    """The enrichment: keypoints with scores for every image."""

    def __init__(self, trained: TrainedDetector, run: NetworkRun, config: KeypointAdditionConfig) -> None:
        """The network travels with the enrichment: workers need no access to the checkpoint.

        Raises:
            ValueError: The detector's thresholds were never fitted, and the config asks for that.
        """
        if config.fitted_thresholds and not trained.thresholds_fitted:
            raise ValueError(
                "no evaluation has fitted visibility thresholds for this checkpoint: evaluate it in its run"
                " (jobs/train_keypoints.py --eval-only, with data.held_out_share above 0), or set"
                f" fitted_thresholds=false to take {trained.experiment.evaluation.threshold:g} for all keypoints"
            )
        self._trained = trained
        self._run = run
        self._keep = config.annotated == "keep"

    @property
    def provenance(self) -> Provenance:
        """The checkpoint's hash, and all of the settings that shape the keypoints."""
        experiment = self._trained.experiment
        transform, model = experiment.data.transform, experiment.model
        return Provenance(
            name="keypoints",
            version=f"hourglass {self._trained.checkpoint_hash}",
            settings={
                "num_stacks": model.num_stacks,
                "height": transform.height,
                "width": transform.width,
                "area_above": transform.area_above,
                "refinement": experiment.evaluation.refinement,
                "score": self._trained.score,
                "thresholds": self._trained.thresholds.tolist(),
                "trained_on": self._trained.data_hash,
                "annotated": "keep" if self._keep else "replace",
                **self._run.provenance(),
            },
        )

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Additions]:
        """Keypoints, scores and what is measured of each image."""
        experiment = self._trained.experiment
        model = self._trained.model.to(self._run.device)

        def answer(images: Tensor, sizes: NDArray[np.int64], chosen: Sequence[Sample]) -> list[Additions]:
            keypoints, scores = predict_keypoints(
                model,
                images,
                sizes,
                self._trained.thresholds,
                refinement=experiment.evaluation.refinement,
                score=self._trained.score,
            )
            visible = keypoints[..., 2:] > 0
            # Refinement may leave the image by up to a cell.
            limits = sizes[:, None, ::-1] - 1
            keypoints[..., :2] = np.where(visible, keypoints[..., :2].clip(0, limits), 0)
            planes = visible_planes(keypoints)
            return [
                self._additions(sample, keypoints[place], scores[place], planes[place])
                for place, sample in enumerate(chosen)
            ]

        return answer_in_batches(samples, experiment.data.transform, self._run, answer)

    def _additions(
        self, sample: Sample, keypoints: NDArray[np.float32], scores: NDArray[np.float32], planes: NDArray[np.bool_]
    ) -> Additions:
        if self._keep and sample.keypoints is not None:
            return Additions()
        visible = keypoints[:, 2] > 0
        measures = {
            VISIBLE_KEYPOINTS: float(visible.sum()),
            **{f"{PLANE_RATE}{name}": float(shown) for name, shown in zip(PLANE_NAMES, planes, strict=True)},
            NO_PLANE: float(not planes.any()),
            FRONT_AND_BACK: float(planes[PLANE_NAMES.index("front")] and planes[PLANE_NAMES.index("back")]),
        }
        if sample.keypoints is not None:
            measures[ANNOTATION_AGREES] = float((planes == visible_planes(sample.keypoints[None])[0]).mean())
        problem = "" if visible.any() else "nothing_visible"
        return Additions(keypoints=keypoints, keypoint_scores=scores, problem=problem, measures=measures)


class AbsurdRates:
    """Watches the results of a run; refuses, before the set is published, a detector that does not know the images."""

    def __init__(self, config: KeypointAdditionConfig) -> None:
        self._config = config
        self._images = 0
        self._without = 0.0

    def __call__(self, done: int, total: int, result: ShardResult) -> None:
        """Counts a shard, and judges when enough images are there, or all.

        Raises:
            DataError: Too many of the images so far show no plane.
        """
        self._images += result.counts.get(NO_PLANE, 0)
        self._without += result.sums.get(NO_PLANE, 0.0)
        if self._images < self._config.min_images_to_judge and done < total:
            return
        limit = self._config.max_without_plane
        if self._without > limit * self._images:
            raise DataError(
                f"{self._without / self._images:.0%} of the first {self._images:,} images show no plane at all, more"
                f" than max_without_plane = {limit:g}: this detector does not know such images. Fine-tune it on some"
                " annotated ones (jobs/train_keypoints.py), or raise the limit if this is as it should be"
            )


def rates_table(means: Mapping[str, float]) -> str:
    """A line per plane: its rate in the set by the added keypoints, and on VeRi-776's gallery."""
    lines = [f"{'plane':<8}{'this set':>10}{'VeRi-776':>10}"]
    for plane in PLANE_NAMES:
        veri = veri_rate_with_substitutes(plane)
        lines.append(f"{plane:<8}{100 * means.get(f'{PLANE_RATE}{plane}', 0.0):>10.1f}{100 * veri:>10.1f}")
    return "\n".join(lines)


def rate_warnings(rates: Mapping[str, float]) -> list[str]:
    """What looks wrong in the means of `AddedKeypoints`'s measures, a sentence each."""
    found = []
    for plane in PLANE_NAMES:
        rate = rates.get(f"{PLANE_RATE}{plane}")
        if rate is not None and not 0.01 <= rate <= 0.99:
            found.append(
                f"the {plane} plane is seen in {rate:.1%} of the images: right for cameras that all look at one side,"
                " wrong for others"
            )
    if rates.get(NO_PLANE, 0.0) > 0.2:
        found.append(f"{rates[NO_PLANE]:.0%} of the images show no plane and cannot train the local branch")
    if rates.get(FRONT_AND_BACK, 0.0) > 0.01:
        found.append(f"{rates[FRONT_AND_BACK]:.1%} of the images show front and back at once, which is impossible")
    if rates.get(VISIBLE_KEYPOINTS, 20.0) < 4:
        found.append(f"only {rates[VISIBLE_KEYPOINTS]:.1f} keypoints are visible in an image on average")
    if rates.get(ANNOTATION_AGREES, 1.0) < 0.8:
        found.append(
            f"{rates[ANNOTATION_AGREES]:.0%} of the planes agree with the annotation that the set came with, below 80 %"
        )
    return found
