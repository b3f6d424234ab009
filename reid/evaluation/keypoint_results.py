"""The result of a detector's evaluation: figures with everything needed to know what they are figures of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

from pydantic import Field

from reid.contracts import Settings
from reid.evaluation.heat_map_peaks import Refinement, Score
from reid.evaluation.keypoint_metrics import KeypointMetrics, PlaneAgreement
from reid.evaluation.results import ResultRows
from reid.keypoints import KEYPOINT_NAMES, PLANE_NAMES, veri_rate_with_substitutes

FORMAT_VERSION: Final = 1


class KeypointEvaluationConfig(Settings):
    """How a detector's checkpoint is evaluated and shown."""

    every_epochs: int = Field(1, ge=1)
    """A checkpoint is evaluated after each so many epochs; the last one always is."""
    batch_size: int = Field(64, ge=1)
    """Images at once."""
    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the network; decoding is float32 always."""
    refinement: Refinement = "quarter"
    """How peaks are placed below a cell: quarter is the usual decoding, taylor fits a parabola (DARK)."""
    score: Score = "peak"
    """What tells whether a keypoint is visible: its peak's height, or the mass around it (a little better)."""
    threshold: float = Field(0.3, ge=0.0, le=1.0)
    """A keypoint is visible when its score is higher; where nothing can be fitted, or with `fit_thresholds` off."""
    fit_thresholds: bool = True
    """Fit a threshold for each keypoint on the held-out training identities (`data.held_out_share`): the largest F1."""
    num_pictures: int = Field(24, ge=0)
    """Images shown in the report: half of them the worst, half spread over all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeypointResult:
    """Figures of one checkpoint of a detector; fractions 0..1, printed as percent."""

    protocol: str
    """What it was measured on, such as "annotated test images"."""
    metrics: KeypointMetrics
    planes: PlaneAgreement
    orientation_predicted: float
    """Share of images whose orientation by predicted keypoints is that by annotated ones."""
    orientation_annotated: float | None
    """Share of images whose orientation by predicted keypoints is the annotated one; None: none is annotated."""
    thresholds: tuple[float, ...]
    """A keypoint is visible when its peak is higher than its own."""
    num_fitted_on: int
    """Held-out training images that thresholds were fitted on; 0: the default."""
    checkpoint_hash: str
    manifest_hash: str
    """Of the data set."""
    name: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """Wall-clock time."""

    def headline(self) -> float:
        """The figure by which checkpoints are compared."""
        return self.metrics.pck

    def figures(self) -> dict[str, float]:
        """The headline figures by their short names, fractions 0..1."""
        return {
            "PCK@0.1": self.metrics.pck,
            "error": self.metrics.mean_error,
            "visibility F1": self.metrics.visibility_f1,
            "planes": self.planes.mean,
            "orientation": self.orientation_predicted,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, ready for `json.dumps`."""
        data = asdict(self)
        data["format"] = FORMAT_VERSION
        data["figures"] = self.figures()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises:
            ValueError: If it is of another format or lacks a field.
        """
        if data.get("format") != FORMAT_VERSION:
            raise ValueError(
                f"expected a stored evaluation of format {FORMAT_VERSION}, got {data.get('format')!r}; evaluate again"
            )
        try:
            stored: Mapping[str, Any] = data["metrics"]
            metrics: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
            return cls(
                metrics=KeypointMetrics(**metrics),
                planes=PlaneAgreement(**data["planes"]),
                thresholds=tuple(data["thresholds"]),
                notes=tuple(data["notes"]),
                **{name: data[name] for name in _PLAIN_FIELDS},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a stored evaluation lacks or mistypes {error}; evaluate again") from None


_PLAIN_FIELDS: Final = (
    "protocol", "orientation_predicted", "orientation_annotated", "num_fitted_on", "checkpoint_hash", "manifest_hash",
    "name", "seconds",
)  # fmt: skip


def keypoint_rows(results: Sequence[KeypointResult]) -> ResultRows:
    """One row per checkpoint; percent."""
    header = ("name", "images", *(results[0].figures() if results else ()))
    rows = [
        (result.name, f"{result.metrics.num_images:,}", *(f"{100 * value:.1f}" for value in result.figures().values()))
        for result in results
    ]
    notes = [
        f"measured on {result.protocol}; thresholds "
        + (f"fitted on {result.num_fitted_on:,} held-out images" if result.num_fitted_on else "not fitted")
        for result in results
    ] + [note for result in results for note in result.notes]
    return ResultRows(header, tuple(rows), tuple(dict.fromkeys(notes)))


def points_table(result: KeypointResult) -> str:
    """A line per keypoint: visible points, PCK@0.1, mean error, visibility F1, threshold; plain text."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    metrics = result.metrics
    lines = [f"{'keypoint':<28}{'visible':>9}{'PCK@0.1':>9}{'error %':>9}{'F1':>7}{'threshold':>11}"]
    for number, name in enumerate(KEYPOINT_NAMES):
        lines.append(
            f"{number + 1:>2} {name:<25}{metrics.num_visible[number]:>9,}{percent(metrics.pck_per_keypoint[number]):>9}"
            f"{percent(metrics.mean_error_per_keypoint[number]):>9}"
            f"{percent(metrics.visibility_f1_per_keypoint[number]):>7}{result.thresholds[number]:>11.3f}"
        )
    lines.append(
        f"{'all':<28}{sum(metrics.num_visible):>9,}{percent(metrics.pck):>9}{percent(metrics.mean_error):>9}"
        f"{percent(metrics.visibility_f1):>7}"
    )
    return "\n".join(lines)


def planes_table(result: KeypointResult) -> str:
    """A line per plane: its rate by predicted and by annotated keypoints beside VeRi-776's, and the agreement."""
    lines = [f"{'plane':<8}{'predicted':>11}{'annotated':>11}{'agreement':>11}{'VeRi-776':>10}"]
    planes = result.planes
    for plane in PLANE_NAMES:
        veri = veri_rate_with_substitutes(plane)
        lines.append(
            f"{plane:<8}{100 * planes.predicted_rate[plane]:>11.1f}{100 * planes.true_rate[plane]:>11.1f}"
            f"{100 * planes.agreement[plane]:>11.1f}{100 * veri:>10.1f}"
        )
    return "\n".join(lines)
