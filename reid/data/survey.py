"""What a reader found in a raw data set: its records, and everything odd about it.

Reading never stops at the first problem. Each reader fills a `Findings` while it goes and returns a `Survey`; training
reads `readable_records`, which refuses errors all at once, and the doctor prints the whole survey.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from reid.contracts import Record, Split

logger = logging.getLogger(__name__)

Severity = Literal["error", "warning", "note"]
"""error: the data set must not be trained on as it is; warning: figures may suffer; note: worth knowing."""

KEY_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What `Record.key` may look like: tar members are split at dots."""

MAX_EXAMPLES: Final = 5
"""Offenders that a finding quotes; the count is always complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One kind of oddity, how often it occurs, and the first places where it does."""

    severity: Severity
    kind: str
    """Short name for scripts, such as "missing-image"."""
    message: str
    """What is wrong and what to do, a clause without the count."""
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.examples)
        more = self.count - len(self.examples)
        quoted = f" ({shown}{f' and {more:,} more' if more > 0 else ''})" if shown else ""
        return f"{self.count:,} x {self.message}{quoted}"


class Findings:
    """Collects oddities while a reader runs, the same kind in one line."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Severity, str, str], int] = {}
        self._examples: dict[tuple[Severity, str, str], list[str]] = {}

    def add(self, severity: Severity, kind: str, message: str, example: str = "", *, count: int = 1) -> None:
        """Counts one more (or `count` more) of this kind and message; the first few examples are kept."""
        group = (severity, kind, message)
        self._counts[group] = self._counts.get(group, 0) + count
        examples = self._examples.setdefault(group, [])
        if example and example not in examples and len(examples) < MAX_EXAMPLES:
            examples.append(example)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Takes over what another reader found."""
        for finding in findings:
            group = (finding.severity, finding.kind, finding.message)
            self._counts[group] = self._counts.get(group, 0) + finding.count
            examples = self._examples.setdefault(group, [])
            examples.extend(finding.examples[: MAX_EXAMPLES - len(examples)])

    def all(self) -> tuple[Finding, ...]:
        """Everything found, errors first, then in the order of first occurrence."""
        rank = {"error": 0, "warning": 1, "note": 2}
        found = [
            Finding(severity=severity, kind=kind, message=message, count=count, examples=tuple(self._examples[group]))
            for group, count in self._counts.items()
            for severity, kind, message in [group]
        ]
        return tuple(sorted(found, key=lambda finding: rank[finding.severity]))


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedCount:
    """How many images and vehicles the release of a data set says that a split has."""

    split: Split
    images: int
    identities: int
    subset: str | None = None
    """Size of a nested benchmark; None: the whole split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """A raw data set as it lies on disk."""

    data_set: str
    """Name of the data set for people."""
    root: Path
    """The folder or file that was read."""
    records: list[Record]
    """Every image that could be understood."""
    findings: tuple[Finding, ...] = ()
    published: tuple[PublishedCount, ...] = ()
    """Official counts to compare with; empty where there are none."""
    keypoint_lines: Mapping[str, int] = field(default_factory=dict)
    """Of the keypoint files: "lines", "distinct", "repeated", "all invisible"; empty without such files."""


def readable_records(survey: Survey) -> list[Record]:
    """The records of a survey without errors; warnings and notes go to the log.

    Raises:
        ValueError: with every error of the survey, when there is one, or when there are no records at all.
    """
    findings = Findings()
    findings.extend(survey.findings)
    check_keys(survey.records, findings)
    refuse_errors(findings.all(), f"{survey.data_set} in {survey.root}")
    if not survey.records:
        raise ValueError(f"{survey.data_set} in {survey.root}: expected images, found none")
    for finding in survey.findings:
        level = logging.WARNING if finding.severity == "warning" else logging.INFO
        logger.log(level, "%s: %s", survey.data_set, finding)
    return survey.records


def check_keys(records: Sequence[Record], findings: Findings) -> None:
    """Adds an error for keys that `Record.key` does not allow, and for keys that images of one split share."""
    uses = Counter((record.split, record.key) for record in records)
    for (split, key), number in uses.items():
        if number > 1:
            message = "name that several images of a split share: rename or remove all but one"
            findings.add("error", "duplicate-name", message, f"{split}/{key}")
        if not KEY_PATTERN.fullmatch(key):
            message = "name that is not 1 to 128 of letters, digits, - and _: rename it"
            findings.add("error", "unparsed-name", message, f"{split}/{key}")


def refuse_errors(findings: Sequence[Finding], source: str) -> None:
    """Raises one ValueError that names all errors among `findings`; returns silently without any."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        lines = "\n".join(f"  {error}" for error in errors)
        raise ValueError(f"{source} cannot be used as it is:\n{lines}")
