"""Re-ranking at VeRi-776's size against a plain dense NumPy implementation of the same algorithm.

    python -m tests.benchmarks.bench_rerank [--repeats 3] [--common FOLDER] [--output FILE]
    python -m tests.benchmarks.bench_rerank --queries 500 --gallery 3000         # quick

All start at the 2,048-dimensional features of queries and gallery and end at the re-ranked distances of all queries to
the gallery. The dense one is written the way it is everywhere: all N x N distances, a full argsort, a loop over the
images, dense vectors; float32. Every measurement is a process of its own with one thread, rounds alternate: CPU-seconds
(user and system) and the peak of its memory above what it held when the features were loaded. The features are clusters
of vehicles with four views each.

With `--common FOLDER`, where fast-reid's `rerank.py` lies, that implementation (the authors' code, used everywhere) is
measured in the same rounds, the three matrices of Euclidean distances that it is given included.

`product` is the part in which features are multiplied: ours each two once, extrapolated from some tiles, the dense one
and the common one all N x N. "Beside the product" compares what follows, each without its own. `evaluation` is ours
from features to the ranks of all positives before and after, `without` the same without re-ranking.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from tests.benchmarks.machine import summary, write_result

SETTINGS = ((20, 6, 0.3), (80, 15, 0.2))
NUM_IDENTITIES = 200
NUM_VIEWS = 4
NUM_CAMERAS = 20


def draw_features(num: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of length 1 and identities: a vehicle, one of its views, and what tells two images of it apart."""
    shared = np.random.default_rng(99)
    spectrum = (1 + np.arange(dim) / 64) ** -0.5
    vehicles = shared.standard_normal((NUM_IDENTITIES, dim)) * spectrum
    views = shared.standard_normal((NUM_IDENTITIES, NUM_VIEWS, dim)) * spectrum
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, NUM_IDENTITIES, num)
    features = vehicles[ids] + 0.9 * views[ids, generator.integers(0, NUM_VIEWS, num)]
    # Some images are clear, some hardly show their vehicle.
    features += generator.gamma(4.0, 0.5, (num, 1)) * generator.standard_normal((num, dim)) * spectrum
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), ids


def dense(query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    """(Q, G) re-ranked distances, everything held at once."""
    features = np.concatenate((query, gallery))
    num = len(features)
    original = 1 - features @ features.T
    original /= original.max(axis=1, keepdims=True)
    order = np.argsort(original, axis=1)

    def reciprocal(image: int, k: int) -> np.ndarray:
        near = order[image, : k + 1]
        return near[(order[near, : k + 1] == image).any(axis=1)]

    vectors = np.zeros((num, num), np.float32)
    for image in range(num):
        core = reciprocal(image, k1)
        members = [core]
        for candidate in core:
            more = reciprocal(candidate, round(k1 / 2))
            if 3 * len(np.intersect1d(more, core)) > 2 * len(more):
                members.append(more)
        members = np.unique(np.concatenate(members))
        weights = np.exp(-original[image, members])
        vectors[image, members] = weights / weights.sum()
    if k2 > 1:
        expanded = np.empty_like(vectors)
        for image in range(num):
            expanded[image] = vectors[order[image, :k2]].mean(axis=0)
        vectors = expanded
    holders = [np.flatnonzero(vectors[:, image]) for image in range(num)]
    result = np.empty((len(query), len(gallery)), np.float32)
    for image in range(len(query)):
        common = np.zeros(num, np.float32)
        for member in np.flatnonzero(vectors[image]):
            owners = holders[member]
            common[owners] += np.minimum(vectors[image, member], vectors[owners, member])
        jaccard = 1 - common / (2 - common)
        result[image] = (1 - weight) * jaccard[len(query) :] + weight * original[image, len(query) :]
    return result


def measure_here(
    kind: str, folder: Path, k1: int, k2: int, weight: float, common: Path | None = None
) -> dict[str, float]:
    """One measurement, in a process that does nothing else."""
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    query, gallery = arrays["query"], arrays["gallery"]
    from reid.evaluation.metrics import summarise
    from reid.evaluation.ranking import rank_positives

    match kind:
        case "ours":
            from reid.contracts import Embeddings
            from reid.evaluation.rerank import rerank
            from reid.evaluation.rerank_config import RerankConfig
            from reid.evaluation.trials import rank_queries

            config = RerankConfig(k1=k1, k2=k2, weight=weight)

            def run(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
                distances = np.empty((len(query), len(gallery)), np.float32)
                rerank(query, gallery, config, distances).apply(distances, 0)
                return distances

        case "dense":

            def run(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
                return dense(query, gallery, k1, k2, weight)

        case "common":
            sys.path.insert(0, str(common))
            module = importlib.import_module("rerank")

            def run(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
                given = [_euclidean(*pair) for pair in ((query, gallery), (query, query), (gallery, gallery))]
                figures["product"] = _cpu_seconds() - began
                return module.re_ranking(*given, k1, k2, weight)

    figures: dict[str, float] = {}
    began = _cpu_seconds()
    run(query[:50], gallery[:450])  # what is loaded and set up once is not counted
    rng = np.random.default_rng(0)
    codes = [arrays["query_ids"], rng.integers(0, NUM_CAMERAS, len(query))]
    codes += [arrays["gallery_ids"], rng.integers(0, NUM_CAMERAS, len(gallery))]
    held, began = _memory_mb("VmRSS"), _cpu_seconds()
    distances = run(query, gallery)
    seconds, peak = _cpu_seconds() - began, _memory_mb("VmHWM") - held
    figures["mAP+RR"] = summarise(rank_positives(np.ascontiguousarray(distances), *codes)).mAP
    match kind:
        case "ours":
            figures["product"] = _product_seconds(gallery, len(query) + len(gallery))
            sets = [
                Embeddings(features=features, vehicle_ids=ids, camera_ids=cameras, samples=np.arange(len(features)))
                for features, ids, cameras in ((query, *codes[:2]), (gallery, *codes[2:]))
            ]
            for name, asked in (("without", None), ("evaluation", config)):
                began = _cpu_seconds()
                ranks = rank_queries(*sets, remove_junk=True, rerank_config=asked)
                figures[name] = _cpu_seconds() - began
            figures["mAP"] = summarise(ranks.base).mAP
            assert summarise(ranks.reranked).mAP == figures["mAP+RR"]
        case "dense":
            features, began = np.concatenate((query, gallery)), _cpu_seconds()
            features @ features.T
            figures["product"] = _cpu_seconds() - began
    return {"seconds": seconds, "peak_mb": peak, **figures}


def _euclidean(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(R, C) distances of features of length 1, without a second matrix of that size."""
    distances = rows @ columns.T
    distances *= -2
    distances += 2
    np.maximum(distances, 0, out=distances)
    return np.sqrt(distances, out=distances)


def _product_seconds(features: np.ndarray, num_images: int, num_tiles: int = 20) -> float:
    """CPU-seconds of the products alone that the neighbours of so many images need."""
    from reid.evaluation.distances import TILE_COLUMNS, TILE_ROWS
    from reid.evaluation.neighbours import triangle_tiles
    from reid.products import row_products

    generator = np.random.default_rng(0)
    rows, columns = (
        torch.from_numpy(features[generator.integers(0, len(features), size)]) for size in (TILE_ROWS, TILE_COLUMNS)
    )
    row_products(rows, columns)
    began = _cpu_seconds()
    for _ in range(num_tiles):
        row_products(rows, columns)
    return (_cpu_seconds() - began) / num_tiles * len(triangle_tiles(num_images))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _memory_mb(name: str) -> float:
    """A figure of /proc/self/status; the peak there, unlike getrusage's, is this program's own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def measure_apart(kind: str, folder: Path, k1: int, k2: int, weight: float, common: Path | None) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_rerank", "--measure", kind, str(folder)]
    command += [str(k1), str(k2), str(weight)]
    if common is not None:
        command += ["--common", str(common)]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(folder: Path, k1: int, k2: int, weight: float, repeats: int, common: Path | None = None) -> dict[str, Any]:
    """Alternating rounds of all."""
    kinds = ("ours", "dense") if common is None else ("ours", "dense", "common")
    rounds = [{kind: measure_apart(kind, folder, k1, k2, weight, common) for kind in kinds} for _ in range(repeats)]
    result: dict[str, Any] = {}
    for kind in kinds:
        timing = summary([each[kind]["seconds"] for each in rounds])
        result[kind] = {
            **rounds[-1][kind],
            "seconds": timing.median,
            "spread": timing.spread,
            "peak_mb": max(each[kind]["peak_mb"] for each in rounds),
        }
    for name in ("product", "without", "evaluation"):
        for kind in kinds:
            if name in result[kind]:
                result[kind][name] = median(each[kind][name] for each in rounds)
    for kind in kinds[1:]:
        pairs = [(each[kind], each["ours"]) for each in rounds]
        result[kind]["times_faster"] = median(other["seconds"] / ours["seconds"] for other, ours in pairs)
        result[kind]["times_faster_beside_product"] = median(
            (other["seconds"] - other["product"]) / (ours["seconds"] - ours["product"]) for other, ours in pairs
        )
        result[kind]["times_less_memory"] = result[kind]["peak_mb"] / result["ours"]["peak_mb"]
    return result


def describe(figures: dict[str, float]) -> str:
    """One line about one implementation."""
    text = (
        f"{figures['seconds']:.2f} CPU-s +-{100 * figures['spread']:.0f} % (product {figures['product']:.2f}), "
        f"{figures['peak_mb']:,.0f} MB, mAP {100 * figures['mAP+RR']:.2f}"
    )
    if "evaluation" in figures:
        return text + (
            f", without re-ranking {100 * figures['mAP']:.2f}; an evaluation {figures['evaluation']:.2f} CPU-s, "
            f"without re-ranking {figures['without']:.2f}"
        )
    return text + (
        f"; ours {figures['times_faster']:.1f}x faster, {figures['times_faster_beside_product']:.1f}x beside the "
        f"product, {figures['times_less_memory']:.1f}x less memory"
    )


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1_678)
    parser.add_argument("--gallery", type=int, default=11_579)
    parser.add_argument("--dim", type=int, default=2_048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--common",
        type=Path,
        help="folder with fast-reid's rerank.py (fastreid/evaluation/): measured in the same rounds",
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, folder, k1, k2, weight = arguments.measure
        print(json.dumps(measure_here(kind, Path(folder), int(k1), int(k2), float(weight), arguments.common)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, (name, num) in enumerate((("query", arguments.queries), ("gallery", arguments.gallery))):
            features, ids = draw_features(num, arguments.dim, seed)
            np.save(folder / f"{name}.npy", features)
            np.save(folder / f"{name}_ids.npy", ids)
        for k1, k2, weight in SETTINGS:
            row = compare(folder, k1, k2, weight, arguments.repeats, arguments.common)
            results[f"{k1}/{k2}/{weight}"] = row
            for kind, figures in row.items():
                print(f"{k1}/{k2}/{weight} {kind}: {describe(figures)}")
    if arguments.output:
        write_result(arguments.output, "rerank", results)


if __name__ == "__main__":
    main()
