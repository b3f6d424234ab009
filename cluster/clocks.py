"""Whether the nodes of a cluster agree about the time.

Where a clock is minutes off, object stores refuse requests and certificates are not yet valid.
"""

from __future__ import annotations

import logging
import time

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LARGEST_DIFFERENCE_SECONDS = 5.0
"""Clocks that are further off are named."""
PATIENCE_SECONDS = 10.0
"""A node that does not answer by then is not waited for."""

logger = logging.getLogger(__name__)


def warn_of_clocks() -> dict[str, float]:
    """Names the nodes whose clock is not this machine's, and gives their differences in seconds.

    Needs a connected cluster; one with a single node is not asked. Ends no run: nodes that do not answer are
    left out.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return {}
    sent = time.time()
    asked = {
        _time_there.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
        for node in nodes
    }
    differences = {}
    waiting = list(asked)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while waiting and (left := deadline - time.monotonic()) > 0:
        answered, waiting = ray.wait(waiting, timeout=left)
        for answer in answered:
            try:
                differences[asked[answer]] = difference(sent, ray.get(answer), time.time())
            except RayError as error:
                logger.debug("the clock of %s was not asked: %s", asked[answer], error)
    for late in waiting:
        ray.cancel(late)
    for name, seconds in differences.items():
        if abs(seconds) > LARGEST_DIFFERENCE_SECONDS:
            logger.warning(
                "the clock of node %s is %.0f s %s this machine's: run a time service (NTP) on all nodes; object stores"
                " refuse requests that are some minutes off",
                name, abs(seconds), "ahead of" if seconds > 0 else "behind",
            )  # fmt: skip
    return differences


def difference(sent: float, there: float, received: float) -> float:
    """Seconds by which another clock is ahead, at the least, if it was read between two times of this one.

    >>> difference(100.0, 101.0, 102.0), difference(100.0, 112.0, 102.0), difference(100.0, 70.0, 102.0)
    (0.0, 10.0, -30.0)
    """
    return max(there - received, 0.0) + min(there - sent, 0.0)


@ray.remote(num_cpus=0, max_retries=0)
def _time_there() -> float:
    return time.time()
