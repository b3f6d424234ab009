"""CPU-seconds of coarse masks against the plain pair of `cv2.grabCut` calls on the same images, in one thread.

    python -m tests.benchmarks.bench_masks [--shards FOLDER] [--images 12] [--repeats 3] [--output result.json]

"pair" is the two calls of GrabCut alone, on padded squares that are ready, which is the floor of whoever computes these
masks; "ours" is all that the enrichment does with an image file: decode, stretch, pad, two cuts, intersect, stretch
back, encode. The two alternate image by image, so that other load on the machine hits both equally; below 1 is faster
than the pair.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from reid.data.additions import Sample
from reid.data.coarse_masks import CoarseMasks
from reid.data.decode import decode_image
from reid.data.shard_set import open_shards
from tests.benchmarks.machine import summary, write_result
from tests.reference.coarse_masks import plain_cut, plain_padded, plain_square_mask


def drawn_files(count: int) -> list[bytes]:
    """Synthetic vehicles, when no shards are given."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        height, width = (int(side) for side in generator.integers(90, 320, 2))
        pixels = generator.normal(110, 20, (height, width, 3))
        colour = generator.integers(0, 256, 3).tolist()
        cv2.rectangle(pixels, (width // 6, height // 4), (width * 5 // 6, height * 4 // 5), colour, -1)
        cv2.rectangle(pixels, (width // 4, height // 8), (width * 3 // 4, height // 3), (40, 45, 50), -1)
        noisy = np.clip(pixels + generator.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
        files.append(bytes(cv2.imencode(".jpg", cv2.GaussianBlur(noisy, (3, 3), 0))[1]))
    return files


def files_of(folder: str, count: int) -> list[bytes]:
    """Image files spread evenly over a shard set."""
    with open_shards(folder) as shards:
        rows = np.linspace(0, len(shards) - 1, min(count, len(shards))).astype(int)
        return [bytes(shards.read_image(int(row))) for row in rows]


def benchmark(files: list[bytes], repeats: int) -> dict[str, Any]:
    """CPU-milliseconds an image of the pair and of ours, and their ratio over all images in each round."""
    masks = CoarseMasks()
    samples, squares = [], []
    for number, data in enumerate(files):
        pixels = decode_image(data)
        height, width = pixels.shape[:2]
        samples.append(
            Sample(
                key=str(number),
                split="train",
                image=memoryview(data),
                width=width,
                height=height,
                mask=None,
                keypoints=None,
            )
        )
        padded = plain_padded(pixels)
        squares.append((padded, np.ascontiguousarray(padded[::-1, ::-1])))
    ratios, pair_seconds, our_seconds = [], [], []
    fallbacks = 0
    for round_number in range(repeats + 1):
        pair = ours = 0.0
        for sample, (upright, turned) in zip(samples, squares, strict=True):
            started = time.thread_time()
            plain_cut(upright)
            plain_cut(turned)
            between = time.thread_time()
            (additions,) = masks(iter([sample]))
            ours += time.thread_time() - between
            pair += between - started
            fallbacks += bool(additions.problem) and round_number == 0
        if round_number > 0:  # the first round warms up
            ratios.append(ours / pair)
            pair_seconds.append(pair / len(files))
            our_seconds.append(ours / len(files))
    shares = [float(plain_square_mask(decode_image(data)).mean()) for data in files]
    return {
        "images": len(files),
        "fallbacks": fallbacks,
        "pair_milliseconds": round(1e3 * summary(pair_seconds).median, 1),
        "ours_milliseconds": round(1e3 * summary(our_seconds).median, 1),
        "ours_over_pair": round(median(ratios), 3),
        "ours_over_pair_rounds": [round(ratio, 3) for ratio in ratios],
        "mean_foreground": round(float(np.mean(shares)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="images of this shard set; drawn ones when not given")
    parser.add_argument("--images", type=int, default=12, help="images a round")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    files = files_of(options.shards, options.images) if options.shards else drawn_files(options.images)
    result = benchmark(files, options.repeats)
    print(", ".join(f"{name} {value}" for name, value in result.items()))
    if options.output is not None:
        write_result(options.output, "masks", result)


if __name__ == "__main__":
    main()
