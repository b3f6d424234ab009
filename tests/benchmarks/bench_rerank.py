"""Re-ranking at VeRi-776's size against a plain dense NumPy implementation of the same algorithm.

    python -m tests.benchmarks.bench_rerank [--repeats 3] [--common FOLDER] [--output FILE]
    python -m tests.benchmarks.bench_rerank --queries 500 --gallery 3000         # quick

From 2,048-dimensional features to the re-ranked distances of all queries (ours: to the ranks of all positives, before
and after). The dense one is written the way it is everywhere: all N x N distances, a full argsort, a loop over the
images, dense vectors; float32. Every measurement is a process of its own with one thread, rounds alternate: CPU-seconds
(user and system) and the peak of its memory above what it held when the features were loaded. The features are clusters
of vehicles with four views each.

With `--common FOLDER`, where fast-reid's `rerank.py` lies, that implementation (the authors' code, used everywhere) is
measured in the same rounds: from the Euclidean distances of every two images on, which it is given and which do not
count, while ours starts at the features.

`base` is what an evaluation without re-ranking costs, `added` what re-ranking adds to it. `product` is the part in
which features are multiplied, and both implementations begin with it: ours each two once, extrapolated from some tiles,
the dense one all N x N. "Beside the product" compares what follows, each without its own.
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
    match kind:
        case "ours":
            from reid.contracts import Embeddings
            from reid.evaluation.distances import rank_before_and_after, rank_blocks
            from reid.evaluation.metrics import summarise
            from reid.evaluation.rerank import rerank
            from reid.evaluation.rerank_config import RerankConfig
        case "dense" | "common":
            from reid.evaluation.metrics import summarise
            from reid.evaluation.ranking import rank_positives
    rng = np.random.default_rng(0)
    codes = [arrays["query_ids"], rng.integers(0, NUM_CAMERAS, len(query))]
    codes += [arrays["gallery_ids"], rng.integers(0, NUM_CAMERAS, len(gallery))]
    figures = {}
    match kind:
        case "ours":
            held, config = _memory_mb("VmRSS"), RerankConfig(k1=k1, k2=k2, weight=weight)
            sets = [
                Embeddings(features=features, vehicle_ids=ids, camera_ids=cameras, samples=np.arange(len(features)))
                for features, ids, cameras in ((query, *codes[:2]), (gallery, *codes[2:]))
            ]
            began = _cpu_seconds()
            rank_blocks(*sets, remove_junk=True, memory_budget_bytes=64 << 20)
            figures["base"] = _cpu_seconds() - began
            began = _cpu_seconds()
            change = rerank(query, gallery, config).apply
            ranks = rank_before_and_after(*sets, change, remove_junk=True, memory_budget_bytes=64 << 20)
            seconds, peak = _cpu_seconds() - began, _memory_mb("VmHWM") - held
            figures["product"] = _product_seconds(gallery, len(query) + len(gallery))
            figures["mAP"], figures["mAP+RR"] = (summarise(rank).mAP for rank in ranks)
        case "dense":
            held, began = _memory_mb("VmRSS"), _cpu_seconds()
            distances = dense(query, gallery, k1, k2, weight)
            seconds, peak = _cpu_seconds() - began, _memory_mb("VmHWM") - held
            figures["mAP+RR"] = summarise(rank_positives(distances, *codes)).mAP
            features, began = np.concatenate((query, gallery)), _cpu_seconds()
            features @ features.T
            figures["product"] = _cpu_seconds() - began
        case "common":
            sys.path.insert(0, str(common))
            module = importlib.import_module("rerank")
            pairs = ((query, gallery), (query, query), (gallery, gallery))
            given = [_euclidean(*pair) for pair in pairs]
            held, began = _memory_mb("VmRSS"), _cpu_seconds()
            distances = module.re_ranking(*given, k1, k2, weight)
            seconds, peak = _cpu_seconds() - began, _memory_mb("VmHWM") - held
            figures["mAP+RR"] = summarise(rank_positives(np.ascontiguousarray(distances), *codes)).mAP
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
    from reid.evaluation.neighbours import BLOCK, block_pairs
    from reid.products import row_products

    rows = torch.from_numpy(features[:BLOCK])
    padded = torch.nn.functional.pad(rows, (0, 0, 0, BLOCK - len(rows)))
    row_products(padded, padded)
    began = _cpu_seconds()
    for _ in range(num_tiles):
        row_products(padded, padded)
    return (_cpu_seconds() - began) / num_tiles * len(block_pairs(num_images))


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
    result["ours"]["base"] = median(each["ours"]["base"] for each in rounds)
    for kind in ("ours", "dense"):
        result[kind]["product"] = median(each[kind]["product"] for each in rounds)
    result["times_faster"] = median(each["dense"]["seconds"] / each["ours"]["seconds"] for each in rounds)
    added = [(each["dense"]["seconds"], each["ours"]["seconds"] - each["ours"]["base"], each) for each in rounds]
    result["times_faster_added"] = median(dense / ours for dense, ours, _ in added)
    result["times_faster_beside_product"] = median(
        (dense - each["dense"]["product"]) / (ours - each["ours"]["product"]) for dense, ours, each in added
    )
    result["times_less_memory"] = result["dense"]["peak_mb"] / result["ours"]["peak_mb"]
    if common is not None:
        result["times_faster_than_common"] = median(
            each["common"]["seconds"] / each["ours"]["seconds"] for each in rounds
        )
        result["times_less_memory_than_common"] = result["common"]["peak_mb"] / result["ours"]["peak_mb"]
    return result


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
            ours, other = row["ours"], row["dense"]
            print(
                f"{k1}/{k2}/{weight}: ours {ours['seconds']:.2f} CPU-s +-{100 * ours['spread']:.0f} % "
                f"(base {ours['base']:.2f}, product {ours['product']:.2f}) {ours['peak_mb']:.0f} MB, "
                f"dense {other['seconds']:.2f} CPU-s (product {other['product']:.2f}) {other['peak_mb']:,.0f} MB: "
                f"{row['times_faster']:.1f}x faster, "
                f"{row['times_faster_added']:.1f}x what is added, {row['times_faster_beside_product']:.1f}x beside the "
                f"product, {row['times_less_memory']:.1f}x less memory; "
                f"mAP {100 * ours['mAP']:.2f} -> {100 * ours['mAP+RR']:.2f} (dense {100 * other['mAP+RR']:.2f})"
            )
            if arguments.common is not None:
                common = row["common"]
                print(
                    f"    fast-reid's, from distances on: {common['seconds']:.2f} CPU-s "
                    f"+-{100 * common['spread']:.0f} %, {common['peak_mb']:,.0f} MB, mAP {100 * common['mAP+RR']:.2f}: "
                    f"ours {row['times_faster_than_common']:.1f}x faster, "
                    f"{row['times_less_memory_than_common']:.1f}x less memory"
                )
    if arguments.output:
        write_result(arguments.output, "rerank", results)


if __name__ == "__main__":
    main()
