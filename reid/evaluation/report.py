"""The report of a run or an evaluation: one HTML file that needs nothing else, and what it is made of.

Pictures come ready (`reid.visual` draws them; the two folders do not know each other).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import jinja2

from reid.evaluation.keypoint_results import KeypointResult, keypoint_rows
from reid.evaluation.report_page import PAGE
from reid.evaluation.results import ResultRows, RetrievalResult, result_rows

MediaType = Literal["image/jpeg", "image/png", "image/svg+xml"]

HEADLINE: Final = ("mAP", "R1", "R5", "R10", "mINP", "mAP+RR", "R1+RR")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture file to embed."""

    data: bytes
    """The file's content."""
    media_type: MediaType
    caption: str = ""
    description: str = ""
    """What it shows, for those who cannot see it; default: the caption."""

    @property
    def uri(self) -> str:
        """The picture as a `data:` address."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"

    @property
    def markup(self) -> str | None:
        """SVG to be put into the page itself, where the browser's own font serves; None for other pictures."""
        if self.media_type != "image/svg+xml":
            return None
        text = self.data.decode()
        return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text[text.index("<svg") :], count=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page: some words and pictures."""

    title: str
    introduction: str = ""
    pictures: Sequence[Picture] = ()
    text: str = ""
    """Preformatted, such as a plan or a config."""
    folded: bool = False
    """Shown only when opened."""
    wide: bool = False
    """Each picture takes the full width (rank lists) rather than sharing a row (curves)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that goes into the page, in its order."""

    title: str
    results: Sequence[RetrievalResult | KeypointResult]
    """By rising step, all of one kind; the last one makes the headline."""
    subtitle: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Short facts such as data set, model, duration."""
    sections: Sequence[Section] = ()


def render_report(report: Report) -> str:
    """The page as HTML text.

    Raises:
        ValueError: If there is no result to report.
    """
    if not report.results:
        raise ValueError("expected at least one evaluation result to report, got none")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(PAGE).render(
        report=report, newest=report.results[-1], head=_head(report.results[-1]), table=_table(report.results)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """What the page says about the newest result in its own terms."""

    figures: Sequence[tuple[str, str, str]]
    """Name, value and deviation (or nothing), in percent."""
    count: str
    count_name: str
    explanation: str
    facts: Mapping[str, str]
    """For the last line of the page."""


def _head(result: RetrievalResult | KeypointResult) -> _Head:
    figures = result.figures()
    match result:
        case RetrievalResult(metrics=metrics):
            deviations = result.deviations()
            after = result.reranked
            if after is not None:
                deviations |= {f"{name}+RR": value for name, value in after.deviations().items()}
            skipped = metrics.num_valid_queries != metrics.num_queries
            return _Head(
                figures=[
                    (name, f"{100 * figures[name]:.1f}", f"{100 * deviations[name]:.1f}" if name in deviations else "")
                    for name in HEADLINE
                    if name in figures
                ],
                count=f"{metrics.num_valid_queries:,}",
                count_name="valid queries" + (f" of {metrics.num_queries:,}" if skipped else ""),
                explanation="Percent. AP is the mean precision at each positive, queries without a positive left are"
                " skipped.",
                facts={
                    "protocol": result.protocol,
                    "post-processing": result.post_processing if after is None else f"{after.post_processing} (+RR)",
                },
            )
        case KeypointResult():
            return _Head(
                figures=[(name, f"{100 * value:.1f}", "") for name, value in figures.items()],
                count=f"{result.metrics.num_images:,}",
                count_name="annotated images",
                explanation="Percent. PCK@0.1: visible points that are found within a tenth of the image's longer side"
                " (images are cut to the vehicle); error: their mean distance as a share of that side; planes,"
                " orientation: images in which predicted and annotated keypoints say the same (orientation by the"
                " visible lamps, plates, logos and wheels, which tell it more often than whole planes do).",
                facts={"measured on": result.protocol},
            )


def _table(results: Sequence[RetrievalResult | KeypointResult]) -> ResultRows:
    detectors = [result for result in results if isinstance(result, KeypointResult)]
    retrievals = [result for result in results if isinstance(result, RetrievalResult)]
    return keypoint_rows(detectors) if detectors else result_rows(retrievals)
