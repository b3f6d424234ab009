"""Batch-hard triplet, forward and backward, against the two matrix products that are its floor.

Floor: X X^T (forward) and G X (backward), G of (B, B): what a batch-hard triplet loss over a full matrix of distances
has to multiply. "autograd" is the same two products as forward and backward of one autograd node, and nothing else:
what any loss that multiplies both pays at least. Each variant takes turns with the floor, and with nothing else: other
load on the machine hits both, and neither finds what a third one left in caches and in the allocator. One thread.

    python -m tests.benchmarks.bench_triplet [--rows 64 256 1024] [--repeats 200] [--output result.json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from reid.losses.triplet import triplet_loss
from tests.benchmarks.machine import summary, write_result


class Products(torch.autograd.Function):
    """The floor as an autograd node; the value is one element of X X^T."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(rows, gradient)
        return (rows @ rows.T)[0, 0]

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        rows, gradient = ctx.saved_tensors
        return gradient @ rows, None


def interleaved_seconds(variants: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """CPU-seconds per call of each variant, `rounds` times in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, fn in variants.items():
            started = time.thread_time()
            for _ in range(calls):
                fn()
            if round_number > 0:  # the first round warms up
                seconds[name].append((time.thread_time() - started) / calls)
    return seconds


def benchmark(num_rows: int, dim: int, repeats: int) -> dict[str, float]:
    """Milliseconds of floor, floor in autograd, ours and the plain version on all pairs; ratios within each round."""
    features = torch.randn(num_rows, dim).relu().requires_grad_()
    labels = torch.arange(num_rows) // 4
    rows, gradient = features.detach(), torch.randn(num_rows, num_rows)

    def floor() -> None:
        rows @ rows.T
        gradient @ rows

    def autograd() -> None:
        features.grad = None
        loss = Products.apply(features, gradient)
        assert isinstance(loss, Tensor)
        loss.backward()

    def ours() -> None:
        features.grad = None
        triplet_loss(features, labels, 0.3)[0].backward()

    def all_pairs() -> None:
        features.grad = None
        distances = torch.cdist(features, features)
        same = labels[:, None] == labels
        farthest = (distances * same).amax(1)
        nearest = distances.masked_fill(same, torch.inf).amin(1)
        (farthest - nearest + 0.3).relu().mean().backward()

    # As in training, where larger tensors have come and gone: having freed one (24 MB), the allocator keeps the pages
    # of smaller ones instead of returning them after each call; 100 page faults cost as much as a product of 64 rows.
    torch.ones(6_000_000)
    calls = max(1, 256 // num_rows)
    result: dict[str, float] = {}
    floors: list[float] = []
    for name, variant in (("autograd", autograd), ("ours", ours), ("all_pairs", all_pairs)):
        seconds = interleaved_seconds({"floor": floor, name: variant}, max(3, repeats // calls), calls)
        ratios = [value / reference for value, reference in zip(seconds[name], seconds["floor"], strict=True)]
        result[f"{name}_milliseconds"] = round(1e3 * summary(seconds[name]).median, 3)
        result[f"{name}_over_floor"] = round(median(ratios), 3)
        floors += seconds["floor"]
    result["floor_milliseconds"] = round(1e3 * summary(floors).median, 3)
    result["floor_spread"] = round(summary(floors).spread, 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 1024], help="sizes of the global batch")
    parser.add_argument("--dim", type=int, default=2048, help="length of a feature")
    parser.add_argument("--repeats", type=int, default=200, help="timed calls per size (fewer rounds for small sizes)")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = {}
    for num_rows in options.rows:
        repeats = options.repeats if num_rows < 1024 else max(3, options.repeats // 10)
        result[f"B={num_rows}"] = row = benchmark(num_rows, options.dim, repeats)
        print(f"B = {num_rows}: " + ", ".join(f"{name} {value}" for name, value in row.items()))
    if options.output is not None:
        write_result(options.output, "triplet", result)


if __name__ == "__main__":
    main()
