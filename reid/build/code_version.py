"""Which program a worker runs: nodes with other images or stale copies must not train together."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch
import torchvision

PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of the package `reid`, which holds all that decides what is learnt."""


@cache
def code_version(package: Path = PACKAGE) -> str:
    """A text that is the same where source, torch and torchvision are.

    Args:
        package: Folder whose Python files count, with their places below it.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return f"source {digest.hexdigest()[:12]}, torch {torch.__version__}, torchvision {torchvision.__version__}"
