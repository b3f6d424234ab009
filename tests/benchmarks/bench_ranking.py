"""Exact ranks of all positives (mAP, CMC, mINP, ties, junk) from distances, against a sort of each row.

    python -m tests.benchmarks.bench_ranking [--sizes veri776 veriwild-large] [--repeats 7] [--output FILE]
    python -m tests.benchmarks.bench_ranking --features        # from 2,048-dimensional features, within a memory budget

CPU-seconds of one thread for all queries, extrapolated from one block of them. Four models are played: a good one, a
weak one, one that knows nothing (every positive anywhere in the gallery: the most work for counting), and `reference`,
set to what the published reference was taken on: random embeddings with mAP 0.445 at VeRi size, 200 identities and 20
cameras, so distances to positives vary as much as to others. Its distribution is the same at the other size.

The sort in the same run is NumPy's argsort of each row alone, without any figure from it. The reference is the best
compiled ranking of a known toolbox (fast-reid, Cython, argsort included): with `--compiled FOLDER` it is measured in
the same rounds. Published for it, on a machine with AVX-512: 0.42 s at VeRi size, 53 s at VERI-Wild-large. Rounds
alternate; median and spread.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import tracemalloc
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from reid.contracts import Embeddings
from reid.evaluation.distances import normalised, rank_blocks
from reid.evaluation.metrics import summarise
from reid.evaluation.ranking import GalleryIdentities, rank_block
from tests.benchmarks.machine import summary, write_result


class Size(NamedTuple):
    """A benchmark's size, and what the published reference needs for it."""

    queries: int
    gallery: int
    identities: int
    cameras: int
    cython_seconds: float
    reference_identities: int
    """Identities in the published reference's run."""


SIZES = {
    "veri776": Size(1_678, 11_579, 181, 20, 0.42, 200),
    "veriwild-large": Size(10_000, 138_517, 10_000, 174, 53.0, 10_000),
}
MODELS = {"good": (0.55, 0.16), "reference": (0.787, 0.08), "weak": (0.8, 0.14), "ignorant": (1.0, 0.08)}
"""Mean and deviation of the distance to a positive; to others it is 1.0 and 0.08."""


def draw_block(size: Size, model: str, num_queries: int) -> tuple[np.ndarray, ...]:
    """Distances, identities and cameras of some queries against the whole gallery, in shuffled order."""
    generator = np.random.default_rng(0)
    num_ids = size.reference_identities if model == "reference" else size.identities
    gallery_ids = generator.integers(0, num_ids, size.gallery)
    query_ids = generator.integers(0, num_ids, num_queries)
    distances = generator.standard_normal((num_queries, size.gallery), np.float32) * np.float32(0.08) + np.float32(1)
    same = query_ids[:, None] == gallery_ids
    mean, deviation = MODELS[model]
    distances[same] = generator.normal(mean, deviation, int(same.sum()))
    cameras = generator.integers(0, size.cameras, num_queries), generator.integers(0, size.cameras, size.gallery)
    return distances, query_ids, cameras[0], gallery_ids, cameras[1]


def time_from_distances(
    size: Size, model: str, num_queries: int, repeats: int, compiled: ModuleType | None
) -> dict[str, Any]:
    """CPU-seconds for all queries of this size, and the working memory."""
    distances, query_ids, query_cameras, gallery_ids, gallery_cameras = draw_block(size, model, num_queries)
    gallery = GalleryIdentities(gallery_ids, gallery_cameras)
    figures = summarise(rank_block(distances, query_ids, query_cameras, gallery))
    ours, sort, cython = [], [], []
    num_sorted = max(4, num_queries // 32)
    for _ in range(repeats):
        started = time.process_time()
        gallery = GalleryIdentities(gallery_ids, gallery_cameras)
        once = time.process_time()
        summarise(rank_block(distances, query_ids, query_cameras, gallery))
        ours.append(once - started + (time.process_time() - once) / num_queries * size.queries)
        started = time.process_time()
        for row in distances[:num_sorted]:
            np.argsort(row)
        sort.append((time.process_time() - started) / num_sorted * size.queries)
        if compiled is not None:
            started = time.process_time()
            compiled.evaluate_cy(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, 50)
            cython.append((time.process_time() - started) / num_queries * size.queries)
    tracemalloc.start()
    rank_block(distances, query_ids, query_cameras, gallery)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "seconds": summary(ours).median,
        "spread": summary(ours).spread,
        "fastest_seconds": min(ours),
        "argsort_seconds": summary(sort).median,
        "times_faster_than_argsort": median(a / b for a, b in zip(sort, ours, strict=True)),
        "compiled_seconds": summary(cython).median if cython else None,
        "times_faster_than_compiled": median(a / b for a, b in zip(cython, ours, strict=True)) if cython else None,
        "published_compiled_seconds": size.cython_seconds,
        "working_mb": peak / 2**20,
        "mAP": figures.mAP,
        "mINP": figures.mINP,
    }


def time_from_features(size: Size, budget_mb: int, num_queries: int) -> dict[str, float]:
    """Seconds and memory from features of dimension 2,048 to figures."""
    generator = np.random.default_rng(0)

    def embeddings(num: int) -> Embeddings:
        return Embeddings(
            features=normalised(generator.standard_normal((num, 2048), np.float32)),
            vehicle_ids=generator.integers(0, size.identities, num),
            camera_ids=generator.integers(0, size.cameras, num),
            samples=np.arange(num),
        )

    query, gallery = embeddings(num_queries), embeddings(size.gallery)
    tracemalloc.start()
    started = time.process_time()
    summarise(rank_blocks(query, gallery, remove_junk=True, memory_budget_bytes=budget_mb * 2**20))
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"seconds_for_all": seconds / num_queries * size.queries, "peak_mb": peak / 2**20, "budget_mb": budget_mb}


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--compiled",
        type=Path,
        help="folder with fast-reid's `rank_cy`, built from its rank_cy.pyx by Cython: measured in the same rounds",
    )
    parser.add_argument("--features", action="store_true", help="from features instead of distances")
    parser.add_argument("--budget-mb", type=int, default=256)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    compiled = None
    if arguments.compiled is not None:
        sys.path.insert(0, str(arguments.compiled))
        compiled = importlib.import_module("rank_cy")
    results: dict[str, Any] = {}
    for name in arguments.sizes:
        size = SIZES[name]
        num_queries = min(size.queries, max(64, 15_000_000 // size.gallery))
        if arguments.features:
            results[name] = time_from_features(size, arguments.budget_mb, min(num_queries, 256))
            print(name, {key: round(value, 1) for key, value in results[name].items()})
            continue
        for model in MODELS:
            row = time_from_distances(size, model, num_queries, arguments.repeats, compiled)
            results[f"{name} {model}"] = row
            print(
                f"{name:15} {model:9} {row['seconds']:6.3f} s +-{100 * row['spread']:2.0f} % "
                f"(fastest {row['fastest_seconds']:.3f})  argsort {row['argsort_seconds']:6.2f} s: "
                f"{row['times_faster_than_argsort']:4.1f}x  "
                + (
                    f"compiled {row['compiled_seconds']:6.2f} s: {row['times_faster_than_compiled']:4.1f}x  "
                    if compiled is not None
                    else ""
                )
                + f"{row['working_mb']:4.1f} MB  mAP {100 * row['mAP']:.1f}"
            )
    if arguments.output:
        write_result(arguments.output, "ranking", results)


if __name__ == "__main__":
    main()
