"""Whether workers fit on the nodes of a cluster: each worker finds all that it needs on one node, or waits for ever."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from reid.config import ClusterConfig

Nodes = Sequence[Mapping[str, float]]
"""What each node has: amounts by Ray's names, "CPU" and "GPU" among others."""


def num_that_fit(nodes: Nodes, cpus: float, gpus: float) -> float:
    """How many workers that need so much each can run at once; infinite when they need nothing.

    >>> num_that_fit([{"CPU": 4}, {"CPU": 7, "GPU": 2}], cpus=2, gpus=0), num_that_fit([{"CPU": 4}], cpus=2, gpus=1)
    (5, 0)
    """
    return sum(_num_on_node(node, cpus, gpus) for node in nodes)


def _num_on_node(node: Mapping[str, float], cpus: float, gpus: float) -> float:
    # Ray counts in ten-thousandths.
    wanted = {kind: amount for kind, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    return min((math.floor(node.get(kind, 0) / amount + 1e-6) for kind, amount in wanted.items()), default=math.inf)


def describe_nodes(nodes: Nodes) -> str:
    """What the nodes have, alike ones together.

    >>> describe_nodes([{"CPU": 4}, {"CPU": 4}, {"CPU": 8, "GPU": 1}])
    '2 x 4 CPU(s) and 0 GPU(s), 1 x 8 CPU(s) and 1 GPU(s)'
    """
    kinds = [(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes]
    return ", ".join(f"{kinds.count((c, g))} x {c:g} CPU(s) and {g:g} GPU(s)" for c, g in dict.fromkeys(kinds))


def check_training_fits(nodes: Nodes, cluster: ClusterConfig, device: str) -> None:
    """Refuses training workers that cannot all run at once.

    Raises:
        ValueError: With the arithmetic.
    """
    workers, cpus, gpus = cluster.num_workers, cluster.cpus_per_worker, int(device == "cuda")
    found = num_that_fit(nodes, cpus, gpus)
    if found >= workers:
        return
    there, needed = sum(node.get("CPU", 0) for node in nodes), workers * cpus
    if needed > there:
        why = f"{workers} workers x {cpus} CPU(s) = {needed} CPUs, but the cluster has {there:g}"
    else:
        each = f"{cpus} CPU(s)" + (" and a GPU" if gpus else "")
        why = f"{workers} workers need {each} each on one node, but only {found:g} find them ({describe_nodes(nodes)})"
    raise ValueError(
        f"{why}: lower cluster.num_workers or cluster.cpus_per_worker, or add nodes"
        " (RAY_AUTOSCALING=1 skips this check)"
    )


def check_evaluation_fits(nodes: Nodes, cluster: ClusterConfig) -> None:
    """Refuses evaluation workers that no node could ever run.

    Raises:
        ValueError: Naming what is missing.
    """
    cpus, gpus = cluster.cpus_per_evaluation_worker, cluster.gpus_per_evaluation_worker
    if num_that_fit(nodes, cpus, gpus):
        return
    mend = (
        "set cluster.gpus_per_evaluation_worker=0 to embed on the CPU"
        if gpus and num_that_fit(nodes, cpus, 0)
        else "lower cluster.cpus_per_evaluation_worker"
    )
    raise ValueError(
        f"an evaluation worker needs {cpus:g} CPU(s) and {gpus:g} GPU(s) on one node, but no node has them"
        f" ({describe_nodes(nodes)}); {mend} (RAY_AUTOSCALING=1 skips this check)"
    )


def about_evaluation(nodes: Nodes, cluster: ClusterConfig, device: str) -> str | None:
    """What somebody should know about evaluation beside training: that it waits for its end, or is slow; else None."""
    cpus, gpus = cluster.cpus_per_evaluation_worker, cluster.gpus_per_evaluation_worker
    on_gpus = device == "cuda"
    if gpus and not _fits_beside_training(nodes, cluster, device, 0, gpus):
        return (
            f"training takes {cluster.num_workers} of {sum(node.get('GPU', 0) for node in nodes):g} GPUs, each whole:"
            f" evaluations ({gpus:g} GPU each) run when it leaves one free, at its end at the latest; fewer"
            " cluster.num_workers leave one, cluster.gpus_per_evaluation_worker=0 embeds on the CPU"
        )
    if cpus and not _fits_beside_training(nodes, cluster, device, cpus, gpus):
        return (
            f"training takes {cluster.num_workers * cluster.cpus_per_worker} of"
            f" {sum(node.get('CPU', 0) for node in nodes):g} CPUs: evaluations ({cpus:g} CPU each) run when it leaves"
            " some free; cluster.cpus_per_evaluation_worker=0 lets them share"
        )
    if on_gpus and not gpus:
        return (
            f"training is on GPUs, evaluation on {describe_evaluation_worker(cluster)} of each of"
            f" {cluster.evaluation_workers} worker(s), which may take hours: give it more"
            " (cluster.evaluation_workers, cluster.cpus_per_evaluation_worker), or a GPU that does not train"
            " (cluster.gpus_per_evaluation_worker, a fraction lets several workers share one)"
        )
    return None


def describe_evaluation_worker(cluster: ClusterConfig) -> str:
    """What an evaluation worker embeds with.

    >>> describe_evaluation_worker(ClusterConfig(cpus_per_evaluation_worker=2.5))
    '2 CPU thread(s)'
    """
    if cluster.gpus_per_evaluation_worker:
        return f"{cluster.gpus_per_evaluation_worker:g} GPU(s)"
    return f"{max(1, math.floor(cluster.cpus_per_evaluation_worker))} CPU thread(s)"


def _fits_beside_training(nodes: Nodes, cluster: ClusterConfig, device: str, cpus: float, gpus: float) -> bool:
    """Whether all training workers still find a place when one node is left a worker of `cpus` and `gpus`."""
    training = cluster.cpus_per_worker, int(device == "cuda")
    for place, node in enumerate(nodes):
        if not _num_on_node(node, cpus, gpus):
            continue
        rest = {**node, "CPU": node.get("CPU", 0) - cpus, "GPU": node.get("GPU", 0) - gpus}
        if num_that_fit([*nodes[:place], rest, *nodes[place + 1 :]], *training) >= cluster.num_workers:
            return True
    return False
