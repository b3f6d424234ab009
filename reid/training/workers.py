"""What the workers of one run do together: averages, one decision for all, a check that they agree.

Every function here is a collective operation when a process group exists (all ranks must call it, in the same order)
and does nothing costly when there is none.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from reid.process_group import world_size

_NODE_NAME_BYTES: Final = 64
"""Of a host name, on Linux."""


def rank() -> int:
    """Number of this worker, 0 without a process group. Rank 0 writes checkpoints."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def mean_over_workers(values: Tensor) -> Tensor:
    """The average of a float tensor over the workers."""
    workers = world_size()
    if workers == 1:
        return values
    shared = values.to(_collective_device())
    dist.all_reduce(shared)
    return (shared / workers).to(values.device)


def rows_of_workers(values: Tensor) -> Tensor:
    """(R, ...) a tensor of every worker, by rank; shape and dtype must be the same everywhere."""
    if world_size() == 1:
        return values[None]
    own = values.to(_collective_device())
    rows = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(rows, own)
    return torch.stack(rows).to(values.device)


def node_names() -> list[str]:
    """The host name of each worker's machine, by rank."""
    name = socket.gethostname().encode()[:_NODE_NAME_BYTES].ljust(_NODE_NAME_BYTES, b"\0")
    rows = rows_of_workers(torch.frombuffer(bytearray(name), dtype=torch.uint8))
    return [bytes(row.numpy()).rstrip(b"\0").decode(errors="replace") for row in rows]


def share_text(text: str | None) -> str | None:
    """What rank 0 says, on every rank. None travels as None."""
    if world_size() == 1:
        return text
    device = _collective_device()
    payload = b"" if text is None else text.encode()
    size = torch.tensor([-1 if text is None else len(payload)], dtype=torch.int64, device=device)
    dist.broadcast(size, src=0)
    length = int(size.item())
    if length <= 0:
        return None if length < 0 else ""
    body = torch.zeros(length, dtype=torch.uint8, device=device)
    if rank() == 0:
        body.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    dist.broadcast(body, src=0)
    return bytes(body.cpu().numpy()).decode()


def refuse_disagreement(facts: Mapping[str, str]) -> None:
    """Raise on every rank when the workers do not hold the same facts (config, code version, data set ...).

    Args:
        facts: Name to text; all ranks must give the same names in the same order.

    Raises:
        ValueError: Naming each fact that differs and the ranks that differ from rank 0.
    """
    if world_size() == 1 or not facts:
        return
    digests = b"".join(hashlib.sha256(f"{name}={value}".encode()).digest() for name, value in facts.items())
    own = torch.frombuffer(bytearray(digests), dtype=torch.uint8)
    table = rows_of_workers(own).view(world_size(), len(facts), -1)  # (ranks, facts, 32)
    problems = []
    for column, (name, value) in enumerate(facts.items()):
        different = [r for r in range(world_size()) if not torch.equal(table[r, column], table[0, column])]
        if different:
            problems.append(f"{name}: ranks {different} differ from rank 0 (rank {rank()} has {value!r})")
    if problems:
        raise ValueError("the workers of this run do not agree; start them all alike\n  " + "\n  ".join(problems))


class Wish(IntEnum):
    """What a worker wants of the loop beyond the next step; of several wishes the largest counts."""

    NOTHING = 0
    SAVE = 1
    """A checkpoint now: the machine may be taken away soon."""
    STOP = 2
    """A checkpoint, then the end."""


class WishPoll:
    """Turns a wish that any one worker may have into the same decision on all of them at the same step.

    The exchange of one number starts at one step and is read at the next, on the processor, so that no accelerator is
    ever waited for: a wish takes effect one step after it was seen.
    """

    def __init__(self, wish: Callable[[], Wish]) -> None:
        self._wish = wish
        self._group: Any = None
        self._flag: Tensor | None = None
        self._pending: dist.Work | None = None
        if world_size() > 1 and _collective_device().type != "cpu":
            self._group = dist.new_group(backend="gloo")

    def poll(self) -> Wish:
        """What all workers do after the step that has just ended."""
        wish = self._wish()
        if world_size() == 1:
            return wish
        decided = Wish.NOTHING
        if self._pending is not None and self._flag is not None:
            self._pending.wait()
            self._pending = None
            decided = Wish(int(self._flag.item()))
        if decided is not Wish.STOP:
            self._flag = torch.tensor([float(wish)])
            self._pending = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return decided

    def close(self) -> None:
        """Wait for an exchange in flight."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None


def _collective_device() -> torch.device:
    """Where the default group's tensors must lie."""
    if "nccl" in str(dist.get_backend()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
