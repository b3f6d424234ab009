"""Making batches ahead of their consumer, in order: in a thread of this process or in loader processes."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import DataLoader, Dataset, Sampler

from reid.contracts import Batch, Settings

_PRELOADED: Final = ["reid.data.stream"]
"""Imported once by the fork server, so that a loader process starts in milliseconds."""


class LoaderConfig(Settings):
    """How batches are made ahead of the training step; none of it changes what they contain."""

    processes: int = Field(default=0, ge=0)
    """Loader processes of each worker. 0: a thread of the worker's own process (OpenCV releases the GIL), which is
    enough wherever a step takes longer than making its batch."""
    prefetch_batches: int = Field(default=2, ge=1)
    """Batches made ahead, by each loader process or by the thread."""
    start_method: Literal["forkserver", "spawn", "fork"] = "forkserver"
    """How loader processes begin. The fork server is safe with threads, CUDA and storage clients in the parent; the
    program must be an importable file whose work is under `if __name__ == "__main__"`."""
    pin_memory: bool | None = None
    """Copy batches to page-locked memory, so that the transfer to the GPU overlaps; null: when CUDA is there."""
    masks: bool = False
    """Deliver foreground masks; the shards must hold one for every image."""
    max_bad_fraction: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of a data set's training images that may turn out unreadable before the run is stopped. Each worker holds
    the different ones that it met itself against the whole data set: a bad shard that falls to one worker stops no run
    that is within the share, but R workers that meet equally many may go on up to R times the share, for an epoch or
    more (who reads what is dealt anew each epoch)."""

    @property
    def pins_memory(self) -> bool:
        """`pin_memory` with null resolved on this machine."""
        return torch.cuda.is_available() if self.pin_memory is None else self.pin_memory


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One batch to make."""

    epoch: int
    step: int
    rows: NDArray[np.int64]
    """(B,) rows of the index."""
    partners: NDArray[np.int64] | None = None
    """(B,) another image for each, whose vehicle may be pasted into it."""


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """An image that could not be used, and why."""

    row: int
    """Row of the index."""
    reason: str
    """One of `UnreadableImageError`'s reasons."""
    message: str


@dataclass(frozen=True, slots=True)
class LoadedBatch:
    """A batch and what its loader has to say to the process that counts."""

    batch: Batch
    skipped: tuple[SkippedImage, ...] = ()
    retries: Mapping[str, int] = field(default_factory=dict)
    """Requests to the storage that had to be repeated, by operation."""

    def pin_memory(self) -> LoadedBatch:
        """The same in page-locked memory (the name and signature that `DataLoader` looks for)."""
        batch = self.batch
        pinned = Batch(
            images=batch.images.pin_memory(),
            labels=batch.labels.pin_memory(),
            samples=batch.samples,
            keypoints=batch.keypoints.pin_memory(),
            masks=None if batch.masks is None else batch.masks.pin_memory(),
            boxes=None if batch.boxes is None else batch.boxes.pin_memory(),
        )
        return replace(self, batch=pinned)


class OrderedLoader:
    """Calls `load(request)` ahead of the consumer and yields the results in the order of the requests.

    Loader processes start with the first iteration and stay for the next ones; `close()` ends them.
    """

    def __init__(self, load: Callable[[LoadRequest], LoadedBatch], config: LoaderConfig) -> None:
        """Nothing is started yet.

        Args:
            load: Makes a batch; picklable when there are loader processes.
            config: Processes, prefetching, pinning.
        """
        self._load = load
        self._config = config
        self._requests = _Requests()
        self._processes: DataLoader[LoadedBatch | ValueError] | None = None

    def iterate(self, requests: Iterable[LoadRequest]) -> Generator[LoadedBatch, None, None]:
        """Yield the batch of every request; one iteration at a time, and closing it stops the work on it.

        Args:
            requests: Drawn as places become free: in the loader thread, or with processes in the consumer's thread.
        """
        if self._config.processes == 0:
            return _in_thread(self._load, requests, self._config)
        self._requests.current = requests
        with warnings.catch_warnings():
            # more processes than cores is the user's choice, and right where they wait for a network
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            if self._processes is None:
                self._processes = self._make_processes()
            return _raising(iter(self._processes))

    def close(self) -> None:
        """End the loader processes."""
        self._processes = None

    def _make_processes(self) -> DataLoader[LoadedBatch | ValueError]:
        context = multiprocessing.get_context(self._config.start_method)
        if self._config.start_method == "forkserver":
            context.set_forkserver_preload(_PRELOADED)
        return DataLoader(
            _Calls(self._load),
            batch_size=None,
            sampler=self._requests,
            num_workers=self._config.processes,
            prefetch_factor=self._config.prefetch_batches,
            persistent_workers=True,
            pin_memory=self._config.pins_memory,
            multiprocessing_context=context,
            worker_init_fn=_prepare_process,
        )


class _Requests(Sampler["LoadRequest"]):
    """The `sampler` of a DataLoader whose requests change with the epoch."""

    def __init__(self) -> None:
        self.current: Iterable[LoadRequest] = ()

    def __iter__(self) -> Iterator[LoadRequest]:
        return iter(self.current)


class _Calls(Dataset["LoadedBatch | ValueError"]):
    """A function as a map-style data set, its requests as the keys."""

    def __init__(self, load: Callable[[LoadRequest], LoadedBatch]) -> None:
        self._load = load

    def __getitem__(self, request: LoadRequest) -> LoadedBatch | ValueError:
        try:
            return self._load(request)
        except ValueError as error:  # meant for the user: raised as it is, without the loader process's traceback
            return error


def _raising(answers: Iterator[LoadedBatch | ValueError]) -> Generator[LoadedBatch, None, None]:
    for answer in answers:
        if isinstance(answer, ValueError):
            try:
                raise answer
            finally:
                del answer  # no cycle of error and frame: the processes end when the last reference goes
        yield answer


def _prepare_process(number: int) -> None:
    cv2.setNumThreads(0)


def _in_thread(
    load: Callable[[LoadRequest], LoadedBatch], requests: Iterable[LoadRequest], config: LoaderConfig
) -> Generator[LoadedBatch, None, None]:
    """Load in a thread that stays at most `prefetch_batches` ahead; closing the generator stops and joins it."""
    ready: queue.Queue[LoadedBatch | BaseException | None] = queue.Queue()
    places = threading.Semaphore(config.prefetch_batches)
    stopped = threading.Event()
    pin = config.pins_memory

    def work() -> None:
        try:
            for request in requests:
                places.acquire()
                if stopped.is_set():
                    return
                loaded = load(request)
                ready.put(loaded.pin_memory() if pin else loaded)
            ready.put(None)
        except BaseException as error:  # raised again where the batch is waited for
            ready.put(error)

    cv2.setNumThreads(0)  # images are small: threads of OpenCV would only take cores from the training step
    thread = threading.Thread(target=work, name="batch-loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                try:
                    raise item
                finally:
                    del item
            places.release()
            yield item
    finally:
        stopped.set()
        places.release()
        thread.join()
