"""The process runner itself: results by rank, tensors by value, failures with their cause."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.processes import run


def _sum_over_ranks(rank: int, world_size: int, offset: torch.Tensor) -> torch.Tensor:
    value = offset + rank
    dist.all_reduce(value)
    return value


def _fail_on_the_last_rank(rank: int, world_size: int) -> None:
    if rank == world_size - 1:
        raise ValueError("wheel came off")
    dist.barrier()


def test_every_rank_takes_part_and_tensors_come_back_by_value() -> None:
    actual = run(_sum_over_ranks, 2, torch.tensor([10.0, 20.0]))
    for value in actual:
        torch.testing.assert_close(value, torch.tensor([21.0, 41.0]))


def test_a_failing_rank_ends_the_run_at_once_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 failed(.|\n)*wheel came off"):
        run(_fail_on_the_last_rank, 2, timeout_seconds=60)
