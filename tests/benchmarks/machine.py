"""What every benchmark writes down: the machine, the commit, the package versions, and timings as median and spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "pillow", "pyarrow", "ray")

_CLOCKS = {"process": time.process_time, "wall": time.perf_counter, "thread": time.thread_time}


class Timing(NamedTuple):
    """Seconds of one call: the median of the repeats and their spread."""

    median: float
    """Median of the repeats, seconds."""
    spread: float
    """Half the distance between the fastest and the slowest repeat as a share of the median (0.1: about +-10 %)."""


def measure(
    fn: Callable[[], object],
    warmup: int = 1,
    repeats: int = 5,
    *,
    clock: Literal["process", "wall", "thread"] = "process",
    synchronize: Callable[[], object] | None = None,
) -> Timing:
    """Time `fn()` `repeats` times after `warmup` calls that do not count.

    Args:
        fn: The work. Call it with everything prepared; only the call is timed.
        warmup: Calls before the first timed one.
        repeats: Timed calls.
        clock: "process" counts CPU-seconds of this process (all its threads) and is right on a machine shared with
            others; "wall" counts elapsed seconds; "thread" CPU-seconds of the calling thread.
        synchronize: Called before each clock reading, inside the timed region; give `torch.cuda.synchronize` for work
            that a device does asynchronously.

    Returns:
        (median, spread) as a named tuple.
    """
    read = _CLOCKS[clock]
    wait = synchronize if synchronize is not None else lambda: None
    for _ in range(warmup):
        fn()
    seconds = []
    for _ in range(repeats):
        wait()
        started = read()
        fn()
        wait()
        seconds.append(read() - started)
    return summary(seconds)


def summary(seconds: list[float]) -> Timing:
    """Median and spread of seconds that were measured elsewhere (as by interleaved runs).

    >>> summary([1.0, 2.0, 3.0])
    Timing(median=2.0, spread=0.5)
    """
    median = statistics.median(seconds)
    return Timing(median, (max(seconds) - min(seconds)) / 2 / median if median > 0 else 0.0)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, load, Python, package versions and the commit, ready for JSON."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "gpu": _gpu_name(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "commit": _commit(),
    }


def write_result(path: Path, name: str, result: dict[str, Any]) -> None:
    """Write `{benchmark, machine, result}` as JSON, making the folder when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": name, "machine": describe_machine(), "result": result}
    path.write_text(json.dumps(document, indent=2) + "\n")


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_name() -> str | None:
    # torch is imported here so that a benchmark of something else does not pay for it
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _commit() -> str:
    """Commit of the working tree, with `-modified` when tracked files differ from it; "unknown" outside git."""
    folder = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-modified" if changed else "")
