"""What happens to an image, its keypoints and its mask between the shard and the batch.

Training: resize, pad, random crop, rotation and scale (keypoint detector), flip, colour jitter, degradation (keypoint
detector), random erasing (Zhong et al., 2020), occlusion (PMANet). The random numbers of a step are drawn for the whole
global batch from (seed, epoch, step), so the pixels of a slot are the same whichever worker or process makes them.
Images stay uint8: normalising happens on the device, inside the model.

Convention: pixel centres at integers; sizes are (height, width), boxes (top, left, height, width), points (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from reid.contracts import Settings
from reid.data.degradation import Degradation, DegradationConfig, Probability, degrade, draw_degradation
from reid.data.draws import Purpose, slot_bytes, step_fractions, stream_key
from reid.data.pasting import PasteConfig, draw_pastes
from reid.data.resizing import check_written, resize_image, resize_mask
from reid.data.warp import WarpConfig, move_points, warp_crop, warp_matrices
from reid.keypoints import mirror_order

Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
"""Red, green, blue."""

_BOX_TRIES: Final = 10
"""Sizes drawn for a box before the image is left as it is; with the default ranges on a square one in 1e7 is."""
_GREY_WEIGHTS: Final = np.array([0.299, 0.587, 0.114])
_MIRROR: Final = np.array(mirror_order())


class TransformConfig(Settings):
    """Geometry and augmentation; the defaults are PPT's recipe."""

    height: int = Field(default=256, ge=8)
    """Pixels of a batch's images."""
    width: int = Field(default=256, ge=8)
    """Pixels of a batch's images."""
    area_above: float = Field(default=1.5, ge=1.0)
    """An axis that shrinks by more than this is resized with `cv2.INTER_AREA` (antialiased), otherwise with
    INTER_LINEAR. Against an antialiased resize linear is off by 1.6 grey levels at a factor of 1.5, 2.7 at 2 and 5.8 at
    3 (area: 1.0, 1.9, 2.0) and costs a fifth; mean over 60 vehicle photographs."""
    padding: int = Field(default=10, ge=0)
    """Pixels added on every side in training before a crop of height x width at a random place."""
    padding_colour: Colour = (0, 0, 0)
    """Fill of the padding; black as in the published implementations, whose Pad works before normalisation."""
    warp: WarpConfig | None = None
    """Rotation and scale of image, keypoints and mask; null: off, as in PPT's recipe."""
    flip_probability: Probability = 0.0
    """Probability of a left-right flip of image, keypoints (the mirror pairs change places) and mask."""
    brightness: float = Field(default=0.0, ge=0.0, le=1.0)
    """Colour jitter: brightness is multiplied by 1 - x ... 1 + x."""
    contrast: float = Field(default=0.0, ge=0.0, le=1.0)
    """Colour jitter: distance from the image's mean grey is multiplied by 1 - x ... 1 + x."""
    saturation: float = Field(default=0.0, ge=0.0, le=1.0)
    """Colour jitter: distance from the pixel's own grey is multiplied by 1 - x ... 1 + x."""
    degradation: DegradationConfig | None = None
    """Blur, colour cast, gamma, noise; null: off, as in PPT's recipe."""
    erasing_probability: Probability = 0.5
    """Probability that a random box of the image is filled with `erasing_colour`. Keypoints and masks stay as they
    are: the vehicle's geometry is still there, and a plane that is partly erased still trains."""
    erasing_area: tuple[float, float] = (0.02, 0.4)
    """Smallest and largest share of the image, uniform."""
    erasing_aspect: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height / width, uniform in its logarithm, so that tall and wide are equally likely."""
    erasing_colour: Colour = (124, 116, 104)
    """The mean colour of ImageNet: zero after normalisation."""
    occlusion_probability: Probability = 0.0
    """Probability of an occluding patch (METHOD 2.2; PMANet uses 0.3). Keypoints and masks stay as they are."""
    occlusion_per_image: bool = False
    """False: one box or none for the whole global batch, a colour for each image. True: a box or none for each."""
    occlusion_area: tuple[float, float] = (0.02, 0.2)
    """Smallest and largest share of the image, uniform."""
    occlusion_aspect: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height / width, uniform in its logarithm."""
    paste: PasteConfig | None = None
    """Vehicles of other images in front of this one and behind it, for PANet's masks; null: none, as in the paper."""

    @model_validator(mode="after")
    def _check_ranges(self) -> TransformConfig:
        for name in ("erasing_area", "occlusion_area", "erasing_aspect", "occlusion_aspect"):
            low, high = getattr(self, name)
            limit = 1.0 if name.endswith("area") else np.inf
            if not 0.0 < low <= high <= limit:
                raise ValueError(f"{name} ({low}, {high}): expected 0 < smallest <= largest{' <= 1' * (limit == 1.0)}")
        return self

    @property
    def jitters(self) -> bool:
        """Whether any colour jitter is on."""
        return self.brightness > 0 or self.contrast > 0 or self.saturation > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The random decisions of one step, for all S slots of the global batch."""

    crops: NDArray[np.int64]
    """(S, 2) top and left of the crop in the padded image, 0 ... 2 padding."""
    flipped: NDArray[np.bool_]
    """(S,)"""
    jitter: NDArray[np.float64] | None
    """(S, 3) factors of brightness, contrast, saturation; None: off."""
    erased: NDArray[np.int64]
    """(S, 4) box in the finished image; height 0: none."""
    occluded: NDArray[np.int64]
    """(S, 4) box in the finished image; height 0: none."""
    occlusion_colours: NDArray[np.int64]
    """(S, 3) 0 ... 255."""
    warps: NDArray[np.float64] | None = None
    """(S, 2, 3) from the crop to the warped crop (`reid.data.warp`); None: off."""
    degradation: Degradation | None = None
    """None: off."""
    pastes: NDArray[np.float64] | None = None
    """(S, 6) of `reid.data.pasting`, NaN where nothing is pasted; None: off."""
    background: tuple[NDArray[np.uint64], int] | None = None
    """Key and step of the random pixels outside the images; None: `padding_colour`."""


def draw_augmentation(config: TransformConfig, *, seed: int, epoch: int, step: int, num_images: int) -> Augmentation:
    """Draw the augmentation of one step.

    Args:
        config: Probabilities and ranges.
        seed: Seed of the run.
        epoch: 0-based.
        step: 0-based within the epoch.
        num_images: Images of the *global* batch, P x K; slot s of the batch uses row s of the answer.

    Returns:
        A function of the arguments alone: position = step * num_images + slot decides, whoever asks.
    """

    def draw(purpose: Purpose, rows: int, columns: int) -> NDArray[np.float64]:
        return step_fractions(seed, epoch, purpose, step, (rows, columns))

    size = (config.height, config.width)
    crop = draw(Purpose.CROP, num_images, 3)
    jitter = None
    if config.jitters:
        span = np.array([config.brightness, config.contrast, config.saturation])
        jitter = 1.0 + span * (2.0 * draw(Purpose.COLOUR_JITTER, num_images, 3) - 1.0)
    none = np.zeros((num_images, 4), dtype=np.int64)
    erased, occluded, colours = none, none, np.zeros((num_images, 3), dtype=np.int64)
    columns = 3 + 2 * _BOX_TRIES
    if config.erasing_probability > 0:
        fractions = draw(Purpose.ERASING, num_images, columns)
        erased = _boxes(fractions, config.erasing_probability, config.erasing_area, config.erasing_aspect, size)
    if config.occlusion_probability > 0:
        fractions = draw(Purpose.OCCLUSION_BOX, num_images if config.occlusion_per_image else 1, columns)
        boxes = _boxes(fractions, config.occlusion_probability, config.occlusion_area, config.occlusion_aspect, size)
        occluded = np.broadcast_to(boxes, (num_images, 4))
        colours = np.floor(256 * draw(Purpose.OCCLUSION_COLOUR, num_images, 3)).astype(np.int64)
    warps = background = degradation = None
    if config.warp is not None:
        warps = warp_matrices(config.warp, draw(Purpose.WARP, num_images, 2), *size)
        if config.warp.background == "noise":
            background = (stream_key(seed, epoch, Purpose.BACKGROUND), step)
    if config.degradation is not None:
        degradation = draw_degradation(config.degradation, seed=seed, epoch=epoch, step=step, num_images=num_images)
    pastes = None
    if config.paste is not None:
        pastes = draw_pastes(config.paste, seed=seed, epoch=epoch, step=step, num_images=num_images)
    return Augmentation(
        crops=np.floor(crop[:, :2] * (2 * config.padding + 1)).astype(np.int64),
        flipped=crop[:, 2] < config.flip_probability,
        jitter=jitter,
        erased=erased,
        occluded=occluded,
        occlusion_colours=colours,
        warps=warps,
        degradation=degradation,
        pastes=pastes,
        background=background,
    )


class TrainTransform:
    """Image, keypoints and mask of a training sample under the same augmentation.

    Holds a padded working image, so one transform serves one thread.
    """

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        height, width, padding = config.height, config.width, config.padding
        padded = np.empty((height + 2 * padding, width + 2 * padding, 3), dtype=np.uint8)
        _fill(padded, np.array([0, 0, *padded.shape[:2]]), config.padding_colour)
        padded_mask = np.zeros(padded.shape[:2], dtype=np.uint8)
        inner = (slice(padding, padding + height), slice(padding, padding + width))
        self._padded, self._resized = padded, padded[inner]
        self._padded_mask, self._resized_mask = padded_mask, padded_mask[inner]

    def image(
        self, raw: NDArray[np.uint8], augmentation: Augmentation, slot: int, out: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Transform one image.

        Args:
            raw: (h, w, 3) uint8 RGB of any size.
            augmentation: Decisions of the step.
            slot: Slot of the image in the global batch.
            out: (H, W, 3) uint8, written to.

        Returns:
            `out`.
        """
        colour: Colour | None = self.config.padding_colour
        if augmentation.background is not None:
            colour = None
            for place, target in ((slot, self._padded), (slot + len(augmentation.crops), out)):
                noise = slot_bytes(*augmentation.background, place, target.size)
                np.copyto(target, noise.reshape(target.shape))
        resize_image(raw, self._resized, self.config.area_above)
        self._crop(self._padded, augmentation, slot, out, colour)
        if augmentation.jitter is not None:
            _jitter(out, augmentation.jitter[slot])
        if augmentation.degradation is not None:
            degrade(out, augmentation.degradation, slot)
        _fill(out, augmentation.erased[slot], self.config.erasing_colour)
        _fill(out, augmentation.occluded[slot], augmentation.occlusion_colours[slot])
        return out

    def mask(
        self, raw: NDArray[np.uint8], augmentation: Augmentation, slot: int, out: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Transform one mask (h, w) like its image into `out` (H, W): nearest neighbour, the padding is background."""
        resize_mask(raw, self._resized_mask)
        self._crop(self._padded_mask, augmentation, slot, out, (0, 0, 0))
        return out

    def keypoints(
        self,
        points: NDArray[np.floating],
        raw_sizes: NDArray[np.integer],
        augmentation: Augmentation,
        slots: NDArray[np.integer],
    ) -> NDArray[np.float32]:
        """Transform the keypoints of several images.

        Args:
            points: (n, 20, 3) x, y in raw pixels and visibility.
            raw_sizes: (n, 2) height, width of the raw images.
            augmentation: Decisions of the step.
            slots: (n,) slot of each image in the global batch.

        Returns:
            (n, 20, 3) float32: x, y in pixels of the batch's images and visibility 0 or 1. A point that is not finite
            or lies outside the crop (-0.5 ... size - 0.5) is invisible; invisible points are all zero.
        """
        moved = _resized_points(points, raw_sizes, self.config)
        shift = self.config.padding - augmentation.crops[slots]  # (n, 2) top, left
        moved[..., :2] += shift[:, None, ::-1]
        if augmentation.warps is not None:
            moved[..., :2] = move_points(augmentation.warps[slots], moved[..., :2])
        flipped = augmentation.flipped[slots]
        if flipped.any():
            mirrored = moved[flipped][:, _MIRROR]
            mirrored[..., 0] = self.config.width - 1 - mirrored[..., 0]
            moved[flipped] = mirrored
        return _visible_points(moved, self.config)

    def boxes(
        self, boxes: NDArray[np.floating], augmentation: Augmentation, slots: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Transform the part boxes of several images; what leaves the crop is cut off.

        Args:
            boxes: (n, K, 4) left, top, right, bottom as shares of the raw images' sides.
            augmentation: Decisions of the step, without a warp: a turned box is none.
            slots: (n,) slot of each image in the global batch.

        Returns:
            (n, K, 4) float32 shares of the sides of the batch's images.
        """
        assert augmentation.warps is None, "refused when the stream was made"
        size = np.array([self.config.width, self.config.height] * 2, dtype=np.float64)
        shift = (self.config.padding - augmentation.crops[slots])[:, ::-1]  # (n, 2) left, top
        moved = np.asarray(boxes, dtype=np.float64) + np.concatenate((shift, shift), axis=1)[:, None] / size
        flipped = augmentation.flipped[slots]
        moved[flipped] = moved[flipped][..., [2, 1, 0, 3]]
        moved[flipped, :, 0::2] = 1 - moved[flipped, :, 0::2]
        return moved.clip(0, 1).astype(np.float32)

    def _crop(
        self,
        padded: NDArray[np.uint8],
        augmentation: Augmentation,
        slot: int,
        out: NDArray[np.uint8],
        colour: Colour | None,
    ) -> None:
        top, left = augmentation.crops[slot].tolist()
        if augmentation.warps is not None:
            flipped, is_mask = bool(augmentation.flipped[slot]), padded.ndim == 2
            matrix = augmentation.warps[slot]
            warp_crop(padded, out, matrix, (top, left), flipped=flipped, colour=colour, nearest=is_mask)
            return
        crop = padded[top : top + self.config.height, left : left + self.config.width]
        if augmentation.flipped[slot]:
            check_written(cv2.flip(crop, 1, dst=out), out)
        else:
            np.copyto(out, crop)


class EvalTransform:
    """Image, keypoints and mask of a test sample: resized and nothing else."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config

    def image(self, raw: NDArray[np.uint8], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize one (h, w, 3) uint8 RGB image into `out` (H, W, 3) and return it."""
        resize_image(raw, out, self.config.area_above)
        return out

    def mask(self, raw: NDArray[np.uint8], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize one (h, w) mask into `out` (H, W) and return it."""
        resize_mask(raw, out)
        return out

    def keypoints(self, points: NDArray[np.floating], raw_sizes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Keypoints (n, 20, 3) of raw images of (n, 2) height, width in the resized ones; see `TrainTransform`."""
        return _visible_points(_resized_points(points, raw_sizes, self.config), self.config)


def _boxes(
    fractions: NDArray[np.float64],
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    size: tuple[int, int],
) -> NDArray[np.int64]:
    """(n, 4) top, left, height, width from (n, 3 + 2 tries) fractions; the first drawn size that fits is taken."""
    height, width = size
    tries = (fractions.shape[1] - 3) // 2
    areas = height * width * (area[0] + (area[1] - area[0]) * fractions[:, 3 : 3 + tries])
    aspects = aspect[0] * np.exp(np.log(aspect[1] / aspect[0]) * fractions[:, 3 + tries :])
    heights, widths = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = np.argmax(fits, axis=1)[:, None]
    box_height = np.take_along_axis(heights, first, axis=1)[:, 0]
    box_width = np.take_along_axis(widths, first, axis=1)[:, 0]
    boxes = np.stack(
        (
            np.floor(fractions[:, 1] * (height - box_height + 1)),
            np.floor(fractions[:, 2] * (width - box_width + 1)),
            box_height,
            box_width,
        ),
        axis=1,
    ).astype(np.int64)
    boxes[(fractions[:, 0] >= probability) | ~fits.any(axis=1)] = 0
    return boxes


def _fill(image: NDArray[np.uint8], box: NDArray[np.int64], colour: Colour | NDArray[np.int64]) -> None:
    top, left, height, width = box.tolist()
    if height:  # cv2.rectangle takes both corners and is six times as fast as assigning a colour to a slice
        red, green, blue = (int(channel) for channel in colour)
        cv2.rectangle(image, (left, top), (left + width - 1, top + height - 1), (red, green, blue), cv2.FILLED)


def _jitter(image: NDArray[np.uint8], factors: NDArray[np.float64]) -> None:
    """Brightness, contrast, saturation in one affine map of the colours (rounded and clipped once, not three times)."""
    brightness, contrast, saturation = factors.tolist()
    mean_grey = float(np.dot(_GREY_WEIGHTS, cv2.mean(image)[:3]))
    to_grey = np.tile(_GREY_WEIGHTS, (3, 1))
    colours = np.empty((3, 4))
    colours[:, :3] = brightness * contrast * (saturation * np.eye(3) + (1.0 - saturation) * to_grey)
    colours[:, 3] = (1.0 - contrast) * brightness * mean_grey
    np.copyto(image, cv2.transform(image, colours))


def _resized_points(
    points: NDArray[np.floating], raw_sizes: NDArray[np.integer], config: TransformConfig
) -> NDArray[np.float64]:
    """(n, 20, 3) in the resized image: pixel centres at integers, so x -> (x + 0.5) * scale - 0.5."""
    moved = np.array(points, dtype=np.float64)
    scale = np.array([config.width, config.height]) / np.asarray(raw_sizes, dtype=np.float64)[:, ::-1]
    moved[..., :2] = (moved[..., :2] + 0.5) * scale[:, None] - 0.5
    return moved


def _visible_points(points: NDArray[np.float64], config: TransformConfig) -> NDArray[np.float32]:
    x, y, visibility = points[..., 0], points[..., 1], points[..., 2]
    with np.errstate(invalid="ignore"):  # NaN compares as outside
        inside = (x >= -0.5) & (x < config.width - 0.5) & (y >= -0.5) & (y < config.height - 0.5) & (visibility > 0)
    visible = np.where(inside[..., None], points, 0.0).astype(np.float32)
    visible[..., 2] = inside
    return visible
