"""What a camera does to an image, drawn at random so that a detector trained on synthetic vehicles meets real ones.

Domain randomisation (Tobin et al. 2017), in a camera's order: the lens blurs, white balance and tone curve change the
colours, the sensor adds noise. Keypoints and masks stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from reid.contracts import Settings
from reid.data.draws import Purpose, slot_bytes, step_fractions, stream_key

Probability = Annotated[float, Field(ge=0.0, le=1.0)]

_BYTE_DIFFERENCE_DEVIATION: Final = float(np.sqrt((256**2 - 1) / 6))
"""Standard deviation of the difference of two uniform bytes."""


class DegradationConfig(Settings):
    """Blur, colour cast, gamma and noise."""

    blur_probability: Probability = 0.5
    """Probability that an image is blurred."""
    blur_sigma: tuple[float, float] = (0.3, 1.5)
    """Smallest and largest standard deviation of the Gaussian, pixels of the batch's images, uniform."""
    cast: float = Field(default=0.15, ge=0.0, lt=1.0)
    """Each channel is multiplied by its own factor 1 - x ... 1 + x."""
    gamma: tuple[float, float] = (0.7, 1.4)
    """Smallest and largest exponent of the tone curve, uniform in its logarithm."""
    noise: tuple[float, float] = (0.0, 12.0)
    """Smallest and largest standard deviation of the noise, grey levels, uniform."""

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        for name, least in (("blur_sigma", 0.0), ("gamma", 0.0), ("noise", -1e-9)):
            low, high = getattr(self, name)
            if not least < low <= high:
                raise ValueError(f"{name} ({low}, {high}): expected {'0 <=' if name == 'noise' else '0 <'} low <= high")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Degradation:
    """The random decisions of one step, for all S slots of the global batch."""

    blur: NDArray[np.float64]
    """(S,) standard deviation, 0: none."""
    tones: NDArray[np.uint8]
    """(S, 256, 3) what each level of each channel becomes."""
    noise: NDArray[np.float64]
    """(S,) standard deviation."""
    noise_key: NDArray[np.uint64]
    step: int


def draw_degradation(config: DegradationConfig, *, seed: int, epoch: int, step: int, num_images: int) -> Degradation:
    """Draw what happens to each image of one step; see `reid.data.transforms.draw_augmentation`."""
    fractions = step_fractions(seed, epoch, Purpose.DEGRADATION, step, (num_images, 7))

    def between(limits: tuple[float, float], column: int) -> NDArray[np.float64]:
        return limits[0] + (limits[1] - limits[0]) * fractions[:, column]

    gamma = np.exp(between((float(np.log(config.gamma[0])), float(np.log(config.gamma[1]))), 2))
    cast = 1.0 + config.cast * (2.0 * fractions[:, 3:6] - 1.0)
    curve = (np.arange(256) / 255.0) ** gamma[:, None]  # (S, 256)
    tones = np.clip(np.rint(255.0 * curve[..., None] * cast[:, None]), 0, 255).astype(np.uint8)
    return Degradation(
        blur=np.where(fractions[:, 0] < config.blur_probability, between(config.blur_sigma, 1), 0.0),
        tones=tones,
        noise=between(config.noise, 6),
        noise_key=stream_key(seed, epoch, Purpose.NOISE),
        step=step,
    )


def degrade(image: NDArray[np.uint8], degradation: Degradation, slot: int) -> None:
    """Degrade one image (H, W, 3) in place."""
    sigma = float(degradation.blur[slot])
    if sigma > 0:
        np.copyto(image, cv2.GaussianBlur(image, (0, 0), sigma))
    np.copyto(image, cv2.LUT(image, degradation.tones[slot][None]))
    deviation = float(degradation.noise[slot])
    if deviation > 0:
        # The difference of two bytes is triangular: close to a Gaussian, and exact integers on every machine.
        pair = slot_bytes(degradation.noise_key, degradation.step, slot, 2 * image.size).reshape(2, *image.shape)
        steps = pair[0].astype(np.int16) - pair[1]
        noisy = image + steps * np.float32(deviation / _BYTE_DIFFERENCE_DEVIATION)
        np.copyto(image, np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
