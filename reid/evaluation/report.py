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

from reid.evaluation.report_page import PAGE
from reid.evaluation.results import RetrievalResult, result_rows

MediaType = Literal["image/jpeg", "image/png", "image/svg+xml"]

HEADLINE: Final = ("mAP", "R1", "R5", "R10", "mINP")


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
    results: Sequence[RetrievalResult]
    """By rising step; the last one makes the headline."""
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
    newest = report.results[-1]
    figures, deviations = newest.figures(), newest.deviations()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(PAGE).render(
        report=report,
        headline=[
            (name, f"{100 * figures[name]:.1f}", f"{100 * deviations[name]:.1f}" if name in deviations else "")
            for name in HEADLINE
            if name in figures
        ],
        newest=newest,
        table=result_rows(report.results),
    )
