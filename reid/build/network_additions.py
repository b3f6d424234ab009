"""A trained network over the images of a shard, batch by batch: what additions by networks have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from reid.contracts import Settings
from reid.data.additions import Additions, Sample
from reid.data.decode import UnreadableImageError, decode_image
from reid.data.transforms import EvalTransform, TransformConfig
from reid.training.step import StepConfig, resolve_precision


class NetworkRunConfig(Settings):
    """How a trained network is run over a shard set."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where the cluster has some."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Autocast type of the network. auto: bf16 where all GPUs, or the processor, compute in it, else float32."""
    batch_size: int = Field(default=32, ge=1)
    """Images at a time."""
    cpus_per_task: int = Field(default=1, ge=1)
    """CPUs, and threads, of each of the processes that work on a shard."""
    gpus_per_task: float = Field(default=1.0, gt=0.0, le=1.0)
    """GPUs of each of them, when there are some; a fraction shares one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkRun:
    """Where and how exactly a network is run: `NetworkRunConfig` with nothing left open."""

    device: Literal["cpu", "cuda"]
    precision: Literal["bf16", "float32"]
    batch_size: int

    def autocast(self) -> AbstractContextManager[Any]:
        """What the network runs under."""
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def provenance(self) -> dict[str, Any]:
        """What of it shapes results. Batches of other sizes round differently in the last bits and are left out: a run
        that lacked memory continues with smaller ones.
        """
        return {"precision": self.precision}


GpuCheck = Callable[[], bool]
"""Whether the GPUs that there are compute in bf16; asked when it matters."""


def this_gpu_has_bf16() -> bool:
    """Whether this process's GPU computes in bf16 and does not only emulate it, which is slower than float32."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def resolve_run(config: NetworkRunConfig, *, gpus_have_bf16: GpuCheck | None) -> NetworkRun:
    """The run on a cluster with or without GPUs.

    Args:
        config: What was asked for.
        gpus_have_bf16: Of the GPUs, which need not be in this process; None: there are none.

    Raises:
        ValueError: GPUs were asked for and there are none, or a type that the processor cannot compute in.
    """
    if config.device == "cuda" and gpus_have_bf16 is None:
        raise ValueError("network.device is cuda, but there is no GPU: add GPU nodes, or set network.device=auto")
    if gpus_have_bf16 is None or config.device == "cpu":
        resolved = resolve_precision(StepConfig(precision=config.precision), torch.device("cpu"))
        is_bf16 = resolved == "bf16"
        return NetworkRun(device="cpu", precision="bf16" if is_bf16 else "float32", batch_size=config.batch_size)
    is_bf16 = config.precision == "bf16" or (config.precision == "auto" and gpus_have_bf16())
    return NetworkRun(device="cuda", precision="bf16" if is_bf16 else "float32", batch_size=config.batch_size)


Answer = Callable[[Tensor, NDArray[np.int64], Sequence[Sample]], Sequence[Additions]]
"""Images (B, 3, H, W) uint8 RGB on the run's device, heights and widths (B, 2) of the stored images, and the samples
-> the additions of each."""


def nothing_for(sample: Sample, reason: str) -> Additions:
    """No additions, and why."""
    return Additions(problem=reason)


def answer_in_batches(
    samples: Iterator[Sample],
    transform: TransformConfig,
    run: NetworkRun,
    answer: Answer,
    unreadable: Callable[[Sample, str], Additions] = nothing_for,
) -> Iterator[Additions]:
    """The additions of each sample, in order; the next batch is decoded while the network has this one.

    Args:
        samples: Of a shard.
        transform: Its size and resizing are used, nothing random.
        run: Device and batch size.
        answer: Runs the network.
        unreadable: What an image that cannot be read is given, for a reason of one word.
    """
    resize = EvalTransform(transform)

    def read(sample: Sample) -> NDArray[np.uint8] | str:
        try:
            raw = decode_image(sample.image)
        except UnreadableImageError as error:
            return error.reason
        return resize.image(raw, np.empty((transform.height, transform.width, 3), dtype=np.uint8))

    def answered(batch: list[Sample], reads: list[Future[NDArray[np.uint8] | str]]) -> Iterator[Additions]:
        results = [future.result() for future in reads]
        readable = [place for place, result in enumerate(results) if not isinstance(result, str)]
        answers: dict[int, Additions] = {}
        if readable:
            chosen = [batch[place] for place in readable]
            images = torch.from_numpy(np.stack([results[place] for place in readable])).permute(0, 3, 1, 2)
            sizes = np.array([(sample.height, sample.width) for sample in chosen], dtype=np.int64)
            # Memory is channels_last already: decoded images have their colours together.
            with torch.inference_mode(), run.autocast():
                answers = dict(zip(readable, answer(images.to(run.device), sizes, chosen), strict=True))
        for place, result in enumerate(results):
            yield unreadable(batch[place], result) if isinstance(result, str) else answers[place]

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        waiting: tuple[list[Sample], list[Future[NDArray[np.uint8] | str]]] | None = None
        while batch := list(islice(samples, run.batch_size)):
            reads = [pool.submit(read, sample) for sample in batch]
            if waiting is not None:
                yield from answered(*waiting)
            waiting = (batch, reads)
        if waiting is not None:
            yield from answered(*waiting)
