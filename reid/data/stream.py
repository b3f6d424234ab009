"""From shards to batches: training images in the order of the batch plan, test images in the order of their rows.

shards --read_image--> bytes --decode--> pixels --transforms--> array (B, H, W, 3) = Batch.images (B, 3, H, W)
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.contracts import Batch, DataError
from reid.data.decode import UnreadableImageError
from reid.data.index import Index
from reid.data.loader import LoadedBatch, LoaderConfig, LoadRequest, OrderedLoader, SkippedImage
from reid.data.occlusion import OcclusionConfig, occlude
from reid.data.pasting import paste
from reid.data.plan import (
    Exposure,
    IdentityTable,
    ImagePlanConfig,
    PlanConfig,
    exposure,
    identity_table,
    image_table,
    lanes_of_worker,
    plan_epoch,
    steps_in_epoch,
)
from reid.data.samples import ImageSource, read_sample
from reid.data.stored_parts import check_part_boxes, part_boxes_of
from reid.data.transforms import Augmentation, EvalTransform, TrainTransform, TransformConfig, draw_augmentation
from reid.keypoints import NUM_KEYPOINTS

__all__ = ["EvalStream", "ImageSource", "LoaderConfig", "TrainStream"]

_LOG_EVERY = 1000
"""Skipped images between two lines of the log, after the first."""

_logger = logging.getLogger(__name__)


class TrainStream:
    """The batches of one worker, in the order of the plan; any epoch, from any step on.

    An image that cannot be decoded is replaced by the next readable image of the same identity (one that the visit does
    not show yet, where there is one), so P x K stays exact; it is counted in `skipped` by reason. In a plan of plain
    images it is replaced by the next readable image.

    With `num_epochs`, an epoch that was taken to its last batch leaves its loader at work on the next one, which
    `batches` then goes on with: nothing waits for cold workers, and what was made is what would have been made.
    """

    def __init__(
        self,
        shards: ImageSource,
        plan_config: PlanConfig | ImagePlanConfig,
        transform_config: TransformConfig,
        loader_config: LoaderConfig,
        *,
        seed: int,
        worker: int = 0,
        num_workers: int = 1,
        num_epochs: int = 0,
        rows: NDArray[np.int64] | None = None,
        num_parts: int = 0,
        stripes: bool = False,
    ) -> None:
        """Check that a plan is possible; nothing is read or started yet.

        Args:
            shards: Where the images are.
            plan_config: P, K and the order, or plain shuffled images.
            transform_config: Size and augmentation.
            loader_config: Processes and prefetching.
            seed: Of the plan and the augmentation, >= 0.
            worker: Rank of this worker.
            num_workers: Workers that share the global batch.
            num_epochs: Epochs of the run; in all but its last one, batches are made ahead across the epoch's end. 0:
                never.
            rows: (N,) the training images to show; None: all.
            num_parts: Deliver so many part boxes of each image, and its mask. Images for which the shards hold none get
                uniform stripes and a mask of ones.
            stripes: Uniform stripes for all images, whatever the shards hold.

        Raises:
            ValueError: Too few identities, a batch that the workers cannot share, a negative seed, missing masks.
        """
        if seed < 0:
            raise ValueError(f"seed {seed}: expected 0 or more")
        self.lanes = lanes_of_worker(plan_config, worker, num_workers)
        index = shards.index
        rows = index.rows("train") if rows is None else rows
        _check_masks(index, rows, loader_config)
        check_part_boxes(index, 0 if stripes else num_parts)
        self._pastes = transform_config.paste is not None
        if self._pastes and (num_parts or not loader_config.masks):
            raise ValueError("data.transform.paste is for masks that are learned (jobs/train_panet.py): set it to null")
        if num_parts and transform_config.warp is not None:
            raise ValueError("part boxes cannot be turned: set data.transform.warp to null")
        self.table: IdentityTable
        match plan_config:
            case ImagePlanConfig():
                self.table = image_table(rows, index.shard[rows].astype(np.int64), plan_config)
                plan_config = plan_config.as_identities()
            case PlanConfig():
                self.table = identity_table(rows, index.label[rows], index.shard[rows].astype(np.int64), plan_config)
        self.skipped: Counter[str] = Counter()
        """Unreadable images met so far, by reason."""
        self.retries: Counter[str] = Counter()
        """Requests to the storage that had to be repeated so far, by operation."""
        self._seed, self._plan_config, self._loader_config = seed, plan_config, loader_config
        self._num_epochs = num_epochs
        self._bad_rows: set[int] = set()
        self._ahead: tuple[int, Generator[LoadedBatch, None, None]] | None = None
        """An epoch that nobody has asked for yet, and its batches in the making."""
        maker = _TrainBatches(
            shards=shards,
            table=self.table,
            transform_config=transform_config,
            batch_size=plan_config.batch_size,
            first_slot=self.lanes.start * plan_config.images_per_identity,
            masks=loader_config.masks or num_parts > 0,
            num_parts=num_parts,
            stripes=stripes,
            seed=seed,
        )
        self._loader = OrderedLoader(maker, loader_config)
        num_short = self.table.num_short(plan_config.images_per_identity)
        if num_short and worker == 0:
            _logger.warning(
                "%d of %d identities have fewer than %d images and repeat them within a batch",
                num_short,
                len(self.table.labels),
                plan_config.images_per_identity,
            )

    def steps_in_epoch(self, epoch: int) -> int:
        """Batches of an epoch, the same on all workers; epochs may differ by a few."""
        return steps_in_epoch(self.table, self._plan_config, seed=self._seed, epoch=epoch)

    def exposure(self, epoch: int) -> Exposure:
        """How often an epoch shows each image, over all workers."""
        return exposure(plan_epoch(self.table, self._plan_config, seed=self._seed, epoch=epoch), self.table)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield this worker's batches of an epoch from `start_step` on; one epoch at a time.

        The cost of beginning does not depend on `start_step`: batches before it are neither read nor drawn.

        Raises:
            ValueError: No such step.
            DataError: Too many unreadable images (`max_bad_fraction`); an identity without a readable one.
        """
        steps = self.steps_in_epoch(epoch)
        if not 0 <= start_step <= steps:
            raise ValueError(f"step {start_step} of epoch {epoch}: expected 0 to {steps}, the steps of the epoch")
        making = self._take_ahead(epoch, start_step)
        if making is None:
            epochs = range(epoch, max(epoch + 1, self._num_epochs))
            requests = _requests(
                self.table, self._plan_config, self.lanes, self._seed, epochs, start_step, with_partners=self._pastes
            )
            making = self._loader.iterate(requests)
        left_at_work = False
        try:
            for step in range(start_step, steps):
                loaded = next(making)
                for image in loaded.skipped:
                    self._count(image)
                self.retries.update(loaded.retries)
                if step + 1 == steps and epoch + 1 < self._num_epochs:
                    # Before the last batch is given out: its consumer may never come back for more.
                    self._ahead, left_at_work = (epoch + 1, making), True
                yield loaded.batch
        finally:
            if not left_at_work:
                making.close()

    def close(self) -> None:
        """End the loader thread or processes."""
        self._stop_ahead()
        self._loader.close()

    def _take_ahead(self, epoch: int, start_step: int) -> Generator[LoadedBatch, None, None] | None:
        """The batches of an epoch that are in the making already; those of any other epoch are given up."""
        if self._ahead is None or (epoch, start_step) != (self._ahead[0], 0):
            self._stop_ahead()
            return None
        (_, making), self._ahead = self._ahead, None
        return making

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead[1].close()
            self._ahead = None

    def _count(self, image: SkippedImage) -> None:
        total = self.skipped.total()
        self.skipped[image.reason] += 1
        self._bad_rows.add(image.row)
        if total % _LOG_EVERY == 0:
            _logger.warning("unreadable training image, %d so far: row %d, %s", total + 1, image.row, image.message)
        limit, num_images = self._loader_config.max_bad_fraction, len(self.table.rows)
        if len(self._bad_rows) > limit * num_images:
            raise DataError(
                f"{len(self._bad_rows)} of {num_images} training images are unreadable, more than max_bad_fraction "
                f"{limit:g} (last: row {image.row}, {image.message}): verify the shards, or pack them again"
            )


def _requests(
    table: IdentityTable,
    config: PlanConfig,
    lanes: range,
    seed: int,
    epochs: range,
    start_step: int,
    *,
    with_partners: bool,
) -> Iterator[LoadRequest]:
    """What a worker loads in some epochs, from a step of the first one on; each plan is made when its turn comes.

    The partner of an image is what its slot shows in the next step (in the last one, in the step before): the same for
    any number of workers, and its shard is at hand or will be needed at once.

    No method of the stream: the loader thread holds this, and dropping the stream must end the thread.
    """
    for epoch in epochs:
        plan = plan_epoch(table, config, seed=seed, epoch=epoch)
        own = plan[:, lanes.start : lanes.stop].reshape(len(plan), -1)
        for step in range(start_step, len(plan)):
            beside = step + 1 if step + 1 < len(plan) else max(step - 1, 0)
            yield LoadRequest(epoch, step, own[step], own[beside] if with_partners else None)
        start_step = 0


class EvalStream:
    """Batches of the given rows, in their order, each row exactly once; the last batch may be short."""

    def __init__(
        self,
        shards: ImageSource,
        rows: Sequence[int] | NDArray[np.int64],
        transform_config: TransformConfig,
        loader_config: LoaderConfig,
        batch_size: int,
        num_parts: int = 0,
        stripes: bool = False,
        occlusion: OcclusionConfig | None = None,
    ) -> None:
        """Nothing is read or started yet.

        Args:
            shards: Where the images are.
            rows: (N,) rows of the index.
            transform_config: Size; augmentation is not used.
            loader_config: Processes and prefetching.
            batch_size: Images of a batch, >= 1.
            num_parts: As of `TrainStream`.
            stripes: Likewise.
            occlusion: Paint a patch into each image; keypoints, masks and part boxes stay those of the clean image.

        Raises:
            ValueError: A batch size below 1, missing masks.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected 1 or more")
        self.rows = np.asarray(rows, dtype=np.int64)
        _check_masks(shards.index, self.rows, loader_config)
        check_part_boxes(shards.index, 0 if stripes else num_parts)
        self._batch_size = batch_size
        maker = _EvalBatches(
            shards, transform_config, loader_config.masks or num_parts > 0, num_parts, stripes, occlusion
        )
        self._loader = OrderedLoader(maker, loader_config)

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.rows) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            UnreadableImageError: A test image that cannot be decoded, with its key: leaving it out would change the
                protocol without a word.
        """
        starts = range(0, len(self.rows), self._batch_size)
        requests = [LoadRequest(0, step, self.rows[at : at + self._batch_size]) for step, at in enumerate(starts)]
        for loaded in self._loader.iterate(requests):
            yield loaded.batch

    def close(self) -> None:
        """End the loader processes."""
        self._loader.close()


@dataclass(frozen=True, kw_only=True)
class _TrainBatches:
    """Makes training batches; a copy works in each loader process."""

    shards: ImageSource
    table: IdentityTable
    transform_config: TransformConfig
    batch_size: int
    """Images of the global batch."""
    first_slot: int
    """Of this worker in the global batch."""
    masks: bool
    num_parts: int
    stripes: bool
    seed: int

    def __call__(self, request: LoadRequest) -> LoadedBatch:
        config = self.transform_config
        augmentation = draw_augmentation(
            config, seed=self.seed, epoch=request.epoch, step=request.step, num_images=self.batch_size
        )
        transform = TrainTransform(config)
        rows = request.rows.copy()
        slots = np.arange(self.first_slot, self.first_slot + len(rows))
        images = np.empty((len(rows), config.height, config.width, 3), dtype=np.uint8)
        masks = np.empty((len(rows), config.height, config.width), dtype=np.uint8) if self.masks else None
        skipped: list[SkippedImage] = []
        for place, slot in enumerate(slots.tolist()):
            raw, mask, rows[place] = self._read_image(int(rows[place]), rows, skipped)
            transform.image(raw, augmentation, slot, images[place])
            if masks is not None:
                assert mask is not None, "read because masks are asked for"
                transform.mask(mask, augmentation, slot, masks[place])
                if request.partners is not None:
                    self._paste(int(request.partners[place]), augmentation, slot, images[place], masks[place])
        points, sizes = _points_and_sizes(self.shards.index, rows)
        keypoints = transform.keypoints(points, sizes, augmentation, slots)
        boxes = None
        if self.num_parts:
            boxes = transform.boxes(
                part_boxes_of(self.shards.index, rows, self.num_parts, stripes=self.stripes), augmentation, slots
            )
        batch = _as_batch(self.shards.index, rows, images, keypoints, masks, boxes)
        return LoadedBatch(batch, tuple(skipped), self.shards.take_retries())

    def _paste(
        self, partner: int, augmentation: Augmentation, slot: int, image: NDArray[np.uint8], mask: NDArray[np.uint8]
    ) -> None:
        config = self.transform_config
        assert augmentation.pastes is not None
        assert config.paste is not None
        if np.isnan(augmentation.pastes[slot, 0]):
            return
        try:
            other, other_mask = read_sample(self.shards, partner, True)
        except UnreadableImageError:  # counted when its own turn comes
            return
        assert other_mask is not None
        paste(image, mask, other, other_mask, augmentation.pastes[slot], config.paste, config.area_above)

    def _read_image(
        self, row: int, batch_rows: NDArray[np.int64], skipped: list[SkippedImage]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, int]:
        """Pixels and mask of `row`, or of the next readable image in its place, and the row they come from."""
        try:
            return *read_sample(self.shards, row, self.masks), row
        except UnreadableImageError as error:
            reason = error
        skipped.append(SkippedImage(row, reason.reason, reason.message))
        others = self.table.replacements(row, batch_rows)
        for other in others.tolist():
            try:
                return *read_sample(self.shards, other, self.masks), other
            except UnreadableImageError:  # counted when its own turn comes
                continue
        vehicle = self.shards.index.vehicle_id[row]
        raise DataError(
            f"none of the {len(others) + 1} training images of vehicle {vehicle!r} can be read ({reason.message}), "
            f"so its place in the batch cannot be filled: pack the shards again without it, or repair its images"
        )


@dataclass(frozen=True)
class _EvalBatches:
    """Makes test batches; a copy works in each loader process."""

    shards: ImageSource
    transform_config: TransformConfig
    masks: bool
    num_parts: int
    stripes: bool
    occlusion: OcclusionConfig | None

    def __call__(self, request: LoadRequest) -> LoadedBatch:
        config, rows = self.transform_config, request.rows.copy()
        transform = EvalTransform(config)
        images = np.empty((len(rows), config.height, config.width, 3), dtype=np.uint8)
        masks = np.empty((len(rows), config.height, config.width), dtype=np.uint8) if self.masks else None
        for place, row in enumerate(rows.tolist()):
            raw, mask = read_sample(self.shards, row, self.masks)
            if self.occlusion is not None:
                occlude(raw, self.shards.index.key[row], self.occlusion)
            transform.image(raw, images[place])
            if masks is not None:
                assert mask is not None, "read because masks are asked for"
                transform.mask(mask, masks[place])
        keypoints = transform.keypoints(*_points_and_sizes(self.shards.index, rows))
        boxes = None
        if self.num_parts:
            boxes = part_boxes_of(self.shards.index, rows, self.num_parts, stripes=self.stripes)
        return LoadedBatch(_as_batch(self.shards.index, rows, images, keypoints, masks, boxes))


def _check_masks(index: Index, rows: NDArray[np.int64], config: LoaderConfig) -> None:
    if config.masks and (without := int(np.count_nonzero(index.mask_size[rows] < 0))):
        raise DataError(
            f"masks are asked for, but {without} of {len(rows)} images have none: add them (jobs/add_masks.py --coarse)"
        )


def _points_and_sizes(index: Index, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Raw keypoints (B, 20, 3), invisible where an image has none, and (B, 2) height and width of the raw images."""
    points = np.where(index.has_keypoints[rows][:, None, None], index.keypoints[rows], np.float32(0))
    assert points.shape[1:] == (NUM_KEYPOINTS, 3)
    return points, np.stack((index.height[rows], index.width[rows]), axis=1)


def _as_batch(
    index: Index,
    rows: NDArray[np.int64],
    images: NDArray[np.uint8],
    keypoints: NDArray[np.float32],
    masks: NDArray[np.uint8] | None,
    boxes: NDArray[np.float32] | None,
) -> Batch:
    channels_last: Tensor = torch.from_numpy(images).permute(0, 3, 1, 2)  # a view: no pixel is copied
    return Batch(
        images=channels_last,
        labels=torch.from_numpy(index.label[rows]),
        samples=torch.from_numpy(rows),
        keypoints=torch.from_numpy(keypoints),
        masks=None if masks is None else torch.from_numpy(masks).unsqueeze(1),
        boxes=None if boxes is None else torch.from_numpy(np.ascontiguousarray(boxes)),
    )
