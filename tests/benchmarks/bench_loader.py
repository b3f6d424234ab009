"""Images per CPU-second of the training stream against a plain torchvision/PIL pipeline with the same transforms.

    python -m tests.benchmarks.bench_loader [--images FOLDER] [--sizes 128 256] [--repeats 7] [--output FILE]

Both read the same JPEG bytes from memory in one process with one thread: decode, resize, pad 10, random crop, random
erasing 0.5, batch of 64. The plain pipeline is PIL + torchvision + default_collate and ends in normalised float32; ours
is the whole `TrainStream` (plan, draws, keypoints, loader thread) and ends in uint8, normalised on the device. The last
column adds that normalisation on the CPU to ours, as for a machine without a device. Repeats alternate.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import default_collate

from reid.data.index import Index, IndexRow, index_from_rows
from reid.data.plan import PlanConfig
from reid.data.stream import LoaderConfig, TrainStream
from reid.data.transforms import TransformConfig
from tests.benchmarks.machine import describe_machine, summary, write_result

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64


class BytesSource:
    """JPEG files in memory; two images for each identity."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files
        rows = []
        for number, data in enumerate(files):
            width, height = Image.open(io.BytesIO(data)).size
            rows.append(
                IndexRow(
                    key=f"{number:06d}",
                    split="train",
                    vehicle_id=f"{number // 2:06d}",
                    shard=number // 64,
                    width=width,
                    height=height,
                    keypoints=np.ones((20, 3), dtype=np.float32),
                )
            )
        self.index: Index = index_from_rows(rows)

    def read_image(self, row: int) -> bytes:
        return self.files[row]

    def read_mask(self, row: int) -> None:
        return None

    def take_retries(self) -> dict[str, int]:
        return {}


def photographs(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def synthetic_photographs(count: int = 512, side: int = 256, quality: int = 90) -> list[bytes]:
    """Smooth random colours with fine texture, about as many bytes as a photograph of that size."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        smooth = cv2.resize(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8), (side, side), interpolation=2)
        texture = cv2.GaussianBlur(generator.normal(0, 40, (side, side, 3)), (0, 0), 1.2)
        image = np.clip(smooth + texture, 0, 255).astype(np.uint8)
        files.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
    return files


def plain_pipeline(files: list[bytes], side: int, num_batches: int) -> Callable[[], object]:
    transform = T.Compose(
        [
            T.Resize((side, side)),
            T.Pad(10),
            T.RandomCrop((side, side)),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
            T.RandomErasing(p=0.5, scale=(0.02, 0.4), ratio=(0.3, 3.3)),
        ]
    )

    def run() -> None:
        order = torch.randint(len(files), (num_batches, BATCH)).tolist()
        for numbers in order:
            images = [transform(Image.open(io.BytesIO(files[number])).convert("RGB")) for number in numbers]
            default_collate([(image, number) for image, number in zip(images, numbers, strict=True)])

    return run


def our_stream(source: BytesSource, side: int, num_batches: int, *, normalise: bool) -> Callable[[], object]:
    stream = TrainStream(
        source,
        PlanConfig(identities_per_batch=16, images_per_identity=4),
        TransformConfig(height=side, width=side),
        LoaderConfig(),
        seed=0,
    )
    epochs = iter(range(1_000_000))
    mean = torch.tensor(MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD).view(1, 3, 1, 1) * 255

    def run() -> None:
        left = num_batches
        while left:
            batches = stream.batches(next(epochs))
            for batch in islice(batches, left):
                if normalise:
                    batch.images.float().sub_(mean).div_(std)
                left -= 1
            batches.close()

    return run


def compare(files: list[bytes], side: int, repeats: int, num_batches: int) -> dict[str, Any]:
    """Images per CPU-second of each pipeline, the median of alternating repeats."""
    source = BytesSource(files)
    pipelines = {
        "plain": plain_pipeline(files, side, num_batches),
        "ours": our_stream(source, side, num_batches, normalise=False),
        "ours, normalised on the CPU": our_stream(source, side, num_batches, normalise=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for repeat in range(repeats + 1):
        for name, run in pipelines.items():
            started = time.process_time()
            run()
            if repeat:  # the first is the warm-up
                seconds[name].append(time.process_time() - started)
    timings = {name: summary(values) for name, values in seconds.items()}
    images = num_batches * BATCH
    return {
        "images_per_cpu_second": {name: round(images / timing.median) for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
        "ratio": round(timings["plain"].median / timings["ours"].median, 2),
        "ratio_normalised": round(timings["plain"].median / timings["ours, normalised on the CPU"].median, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/real-vehicles/images"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    sources = {"synthetic 256x256 q90": synthetic_photographs()}
    if files := photographs(arguments.images):
        sources = {f"{len(files)} photographs": files} | sources
    results: dict[str, Any] = {}
    print(
        f"{'images':<24}{'size':>6}{'plain':>9}{'ours':>9}{'ratio':>8}{'ours+float':>12}{'ratio':>8}   per CPU-second"
    )
    for name, files in sources.items():
        for side in arguments.sizes:
            result = compare(files, side, arguments.repeats, arguments.batches)
            results[f"{name}, {side} px"] = result
            plain, ours, normalised = result["images_per_cpu_second"].values()
            print(
                f"{name:<24}{side:>6}{plain:>9,}{ours:>9,}{result['ratio']:>8.2f}"
                f"{normalised:>12,}{result['ratio_normalised']:>8.2f}   spread {result['spread']}"
            )
    if arguments.output:
        write_result(arguments.output, "loader", results)
    else:
        print(describe_machine())


if __name__ == "__main__":
    main()
