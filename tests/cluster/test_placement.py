"""Which workers fit on which nodes; no cluster is needed to know."""

from __future__ import annotations

import pytest

from cluster.placement import about_evaluation, check_evaluation_fits, check_training_fits
from reid.config import ClusterConfig

SMALL = {"CPU": 4.0}
GPU_NODE = {"CPU": 8.0, "GPU": 4.0}
LONE_GPU = {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "device", "message"),
    [
        ([SMALL, SMALL], 1, 8, "cpu", r"1 workers need 8 CPU\(s\) each on one node, but only 0 find them \(2 x 4 CPU"),
        ([SMALL, SMALL], 3, 3, "cpu", r"3 workers x 3 CPU\(s\) = 9 CPUs, but the cluster has 8"),
        ([SMALL, SMALL], 2, 3, "cpu", None),
        ([SMALL, SMALL], 8, 1, "cpu", None),
        ([LONE_GPU, SMALL], 1, 2, "cuda", r"2 CPU\(s\) and a GPU each on one node, but only 0"),
        ([GPU_NODE], 4, 2, "cuda", None),
        ([GPU_NODE], 4, 3, "cuda", "4 workers x 3"),
        ([GPU_NODE, SMALL], 4, 3, "cuda", "only 2 find them"),
    ],
)
def test_training_workers_find_all_they_need_on_one_node(
    nodes: list[dict[str, float]], workers: int, cpus: int, device: str, message: str | None
) -> None:
    cluster = ClusterConfig(num_workers=workers, cpus_per_worker=cpus)
    if message is None:
        check_training_fits(nodes, cluster, device)
    else:
        with pytest.raises(ValueError, match=message):
            check_training_fits(nodes, cluster, device)


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "mend"),
    [
        ([SMALL, SMALL], 6.0, 0.0, "lower cluster.cpus_per_evaluation_worker"),
        ([SMALL, SMALL], 4.0, 0.0, None),
        ([SMALL], 1.0, 0.5, "set cluster.gpus_per_evaluation_worker=0"),
        ([LONE_GPU, SMALL], 3.0, 1.0, "set cluster.gpus_per_evaluation_worker=0"),
        ([LONE_GPU, SMALL], 1.0, 0.25, None),
        ([{}], 0.0, 0.0, None),
    ],
)
def test_evaluation_workers_that_no_node_could_run_are_refused(
    nodes: list[dict[str, float]], cpus: float, gpus: float, mend: str | None
) -> None:
    cluster = ClusterConfig(cpus_per_evaluation_worker=cpus, gpus_per_evaluation_worker=gpus)
    if mend is None:
        check_evaluation_fits(nodes, cluster)
    else:
        with pytest.raises(ValueError, match=mend):
            check_evaluation_fits(nodes, cluster)


@pytest.mark.parametrize(
    ("nodes", "settings", "device", "said"),
    [
        ([SMALL], {"num_workers": 4}, "cpu", "training takes 4 of 4 CPUs: evaluations"),
        ([SMALL], {"num_workers": 3}, "cpu", None),
        ([SMALL], {"num_workers": 4, "cpus_per_evaluation_worker": 0}, "cpu", None),
        ([SMALL, SMALL], {"num_workers": 2, "cpus_per_worker": 3, "cpus_per_evaluation_worker": 2}, "cpu", "6 of 8"),
        ([GPU_NODE], {"num_workers": 4, "gpus_per_evaluation_worker": 0.5}, "cuda", "training takes 4 of 4 GPUs"),
        ([GPU_NODE], {"num_workers": 3, "gpus_per_evaluation_worker": 0.5}, "cuda", None),
        ([GPU_NODE], {"num_workers": 4}, "cuda", "training is on GPUs, evaluation on 1 CPU thread"),
    ],
)
def test_evaluations_that_wait_for_training_or_are_slow_are_named(
    nodes: list[dict[str, float]], settings: dict[str, float], device: str, said: str | None
) -> None:
    text = about_evaluation(nodes, ClusterConfig.model_validate(settings), device)
    assert (text is None) if said is None else (text is not None and said in text)
