"""Small enrichments for tests, picklable for other processes: pure functions of the image's bytes."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from reid.data.additions import Additions, Provenance, Sample


def number_of(sample: Sample) -> int:
    return hashlib.sha256(sample.image).digest()[0]


@dataclass(frozen=True)
class Painted:
    """A mask that is a box of the image's own; a fallback for a third of the images; nothing for the key `without`."""

    shade: int = 255
    without: str = ""
    kill_at: str = ""
    """The process kills itself when it comes to the image of this key."""

    @property
    def provenance(self) -> Provenance:
        return Provenance(name="painted", version="1", settings={"shade": self.shade, "without": self.without})

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Additions]:
        for sample in samples:
            if sample.key == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if sample.key == self.without:
                yield Additions(problem="no_paint")
                continue
            number = number_of(sample)
            mask = np.zeros((sample.height, sample.width), np.uint8)
            mask[: 1 + number % sample.height] = self.shade
            yield Additions(
                mask=bytes(cv2.imencode(".png", mask)[1]),
                problem="thin_paint" if number % 3 == 0 else "",
                measures={"paint": number / 256},
            )


@dataclass(frozen=True)
class Detected:
    """Keypoints with scores and three part boxes for every image."""

    version: str = "1"

    @property
    def provenance(self) -> Provenance:
        return Provenance(name="detected", version=self.version, settings={})

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Additions]:
        for sample in samples:
            number = number_of(sample)
            keypoints = np.zeros((20, 3), np.float32)
            keypoints[number % 20] = (1.5, 2.5, 1)
            scores = np.full(20, number / 256, np.float32)
            boxes = np.array([[0, k / 3, 0.5, (k + 1) / 3] for k in range(3)], np.float32)
            problem = "unsure" if number % 2 else ""
            yield Additions(keypoints=keypoints, keypoint_scores=scores, boxes=boxes, problem=problem)


@dataclass(frozen=True)
class Nothing:
    """Fails at every image."""

    @property
    def provenance(self) -> Provenance:
        return Provenance(name="nothing", version="1", settings={})

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Additions]:
        return (Additions(problem="dark") for _ in samples)
