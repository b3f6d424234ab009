"""Processes of tests: a function in several that form a gloo group (several workers without Ray), and their end."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist


def run(fn: Callable[..., Any], world_size: int, *args: Any, timeout_seconds: float = 200.0) -> list[Any]:
    """Call `fn(rank, world_size, *args)` in fresh processes of one gloo group and return the results by rank.

    The processes are spawned (nothing is inherited), meet through a file in a temporary folder (no port is needed) and
    use one thread each. `fn` must be a function at the top of an importable module (a test module will do); arguments
    and results travel as plain pickles, tensors by value.

    Args:
        fn: What every rank calls.
        world_size: Number of processes, at least 1. With 1 the group is formed too.
        *args: Passed to every rank after rank and world size.
        timeout_seconds: For the whole run; collective operations give up at the same time.

    Returns:
        The result of rank 0, 1, ...

    Raises:
        RuntimeError: When a rank raised (its traceback is in the message), died, or did not finish in time.
    """
    context = multiprocessing.get_context("spawn")
    call = pickle.dumps((fn, args))
    readers: list[Connection] = []
    processes = []
    with tempfile.TemporaryDirectory(prefix="gloo-") as folder:
        meeting_file = str(Path(folder) / "meeting")
        try:
            for rank in range(world_size):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work, args=(writer, meeting_file, call, rank, world_size, timeout_seconds), daemon=True
                )
                process.start()
                writer.close()
                readers.append(reader)
                processes.append(process)
            return _collect(readers, timeout_seconds)
        except BaseException:
            for process in processes:
                process.kill()
            raise
        finally:
            for process in processes:
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
                    process.join()
                process.close()
            for reader in readers:
                reader.close()


def _collect(readers: list[Connection], timeout_seconds: float) -> list[Any]:
    """The results by rank; the first rank to fail ends the wait, whatever the others are waiting for."""
    deadline = time.monotonic() + timeout_seconds
    results: dict[int, Any] = {}
    while len(results) < len(readers):
        pending = [reader for rank, reader in enumerate(readers) if rank not in results]
        ready = wait(pending, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [rank for rank in range(len(readers)) if rank not in results]
            raise RuntimeError(f"ranks {missing} did not finish within {timeout_seconds:g} s")
        for reader in ready:
            rank = readers.index(reader)  # type: ignore[arg-type]
            try:
                succeeded, value = pickle.loads(readers[rank].recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a result") from None
            if not succeeded:
                raise RuntimeError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(readers))]


def _work(
    writer: Connection, meeting_file: str, call: bytes, rank: int, world_size: int, timeout_seconds: float
) -> None:
    torch.set_num_threads(1)
    try:
        fn, args = pickle.loads(call)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meeting_file}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        value = fn(rank, world_size, *args)
        dist.barrier()
        writer.send_bytes(pickle.dumps((True, value)))
    except BaseException:
        writer.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        writer.close()


def kill_with_descendants(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a process and to what it would leave behind; only its own descendants."""
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for descendant in descendants:
        with contextlib.suppress(psutil.Error):
            descendant.kill()
    process.wait()
