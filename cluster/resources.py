"""What a run asks Ray for: the connection, the check that it can be had, and Ray Train's view of it."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.train import FailureConfig, RunConfig, ScalingConfig

from cluster.placement import (
    about_evaluation,
    check_evaluation_fits,
    check_training_fits,
    describe_nodes,
    num_that_fit,
)
from cluster.worker_failures import FailureMessages
from reid.config import ClusterConfig
from reid.storage import Location, open_location

logger = logging.getLogger(__name__)

JOB_FOLDER = "/runtime_resources/working_dir_files/"
"""Part of the path of every unpacked working directory of `ray job submit`."""


@contextmanager
def ray_connection(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the time of a `with` block: the cluster of RAY_ADDRESS (set by `ray job submit`), else one of our own.

    Args:
        num_cpus: logical CPUs of a Ray started here; None: the machine's. Ignored on an existing cluster.

    Raises:
        ConnectionError: The cluster cannot be joined, or Ray not be started.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {
        # Progress, warnings and failures of workers come through the run folder; Ray's own chatter stays in its logs.
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if os.environ.get("RAY_ADDRESS"):
        logger.info("joining the Ray cluster of RAY_ADDRESS")
        with joining(os.environ["RAY_ADDRESS"]):
            ray.init(**options)
    else:
        logger.info("RAY_ADDRESS is not set: starting Ray on this machine for this run (loopback only)")
        try:
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **options)
        except Exception as error:
            # Ray raises a bare Exception when its processes are not up in time.
            raise ConnectionError(f"Ray did not start on this machine (is it very busy?): {error}") from error
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there, which ends the workers where they are
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def joining(address: str) -> Iterator[None]:
    """ConnectionError, with what to do, for what joining a cluster ends with."""
    try:
        yield
    except AuthenticationError as error:
        raise ConnectionError(
            f"the Ray cluster {address} lets nobody in without its token: set RAY_AUTH_MODE=token and put the cluster's"
            f" token into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH ({error.message})"
        ) from error
    except RuntimeError as error:
        mend = "; install the cluster's versions here" if "Version mismatch" in str(error) else ""
        raise ConnectionError(
            f"the Ray cluster {address} could not be joined: {' '.join(str(error).split())}{mend}"
        ) from error


def absolute_address(name: str, address: str) -> str:
    """An address as every process of the cluster finds it.

    Args:
        name: What it is of, for the message.
        address: Path or URL.

    Raises:
        ValueError: A relative path inside the copy of the working directory that `ray job submit` makes: what is
            written there is thrown away after the job, and what is read there lies elsewhere on every other node.
    """
    location = open_location(address)
    if location.is_local and JOB_FOLDER in location.path:
        raise ValueError(
            f"{name}={address} lies in the job's copy of the working directory, which is thrown away after the job:"
            " give an absolute path or a URL"
        )
    return location.uri


def has_gpus() -> bool:
    """Whether the connected cluster has GPUs, or may add some (`RAY_AUTOSCALING=1`)."""
    return _cluster_grows() or float(ray.cluster_resources().get("GPU", 0)) > 0


def check_task_resources(num_cpus: int, num_gpus: float) -> None:
    """Refuses tasks that no node could ever run; Ray itself would wait for ever.

    Raises:
        ValueError: with what the largest node has, on a cluster that does not grow.
    """
    nodes = _nodes()
    if _cluster_grows() or num_that_fit(nodes, num_cpus, num_gpus):
        return
    raise ValueError(
        f"a task needs {num_cpus} CPU(s) and {num_gpus:g} GPU(s), but no node has them ({describe_nodes(nodes)}): lower"
        " cpus_per_task or gpus_per_task, or add nodes (RAY_AUTOSCALING=1 skips this check)"
    )


def resolve_device(cluster: ClusterConfig) -> str:
    """The device of this run, "cuda" or "cpu", from what the connected cluster has now.

    A cluster that grows (`RAY_AUTOSCALING=1`) may have no GPU yet: say `cluster.device=cuda` there.

    Raises:
        ValueError: GPUs were asked for and there are too few, on a cluster that does not grow.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    match cluster.device:
        case "cuda" if _cluster_grows():
            return "cuda"
        case "cuda" if gpus < cluster.num_workers:
            raise ValueError(
                f"cluster.device is cuda and cluster.num_workers is {cluster.num_workers}, but the cluster"
                f" has {gpus} GPU(s); lower num_workers, add GPU nodes, or set cluster.device=cpu"
            )
        case "auto":
            if 0 < gpus < cluster.num_workers:
                logger.warning(
                    "%d GPU(s) for %d workers: training on the CPU; cluster.num_workers=%d would use them",
                    gpus, cluster.num_workers, gpus,
                )  # fmt: skip
            if gpus == 0:
                logger.warning("the cluster has no GPU: training on the CPU")
            return "cuda" if gpus >= cluster.num_workers else "cpu"
        case device:
            return device


def check_training_resources(cluster: ClusterConfig, device: str) -> None:
    """Refuses a run that the cluster could never start, for which Ray itself would wait for ever; and says what is to
    be known about evaluation beside it.

    Raises:
        ValueError: with the arithmetic. Autoscaling clusters are told apart by `RAY_AUTOSCALING=1`.
    """
    if _cluster_grows():
        return
    nodes = _nodes()
    check_training_fits(nodes, cluster, device)
    if (said := about_evaluation(nodes, cluster, device)) is not None:
        logger.info("%s", said)


def check_evaluation_resources(cluster: ClusterConfig) -> None:
    """Refuses evaluation workers that the cluster could never start.

    Raises:
        ValueError: naming what is missing.
    """
    if not _cluster_grows():
        check_evaluation_fits(_nodes(), cluster)


def _nodes() -> list[dict[str, float]]:
    """What each live node of the connected cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _cluster_grows() -> bool:
    """Whether what a run asks for may be added only once it asks."""
    return os.environ.get("RAY_AUTOSCALING") == "1"


def scaling_config(cluster: ClusterConfig, device: str) -> ScalingConfig:
    """Ray Train's scaling of a run."""
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if device == "cuda":
        resources["GPU"] = 1
    return ScalingConfig(num_workers=cluster.num_workers, use_gpu=device == "cuda", resources_per_worker=resources)


def run_config(cluster: ClusterConfig, storage: Location) -> RunConfig:
    """Ray Train's run: its own bookkeeping only; checkpoints are ours (`reid.training.checkpoint`)."""
    where: dict[str, Any] = {"storage_path": storage.path}
    if not storage.is_local:
        where["storage_filesystem"] = storage.filesystem
    return RunConfig(
        name="ray",
        failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=3),
        callbacks=[FailureMessages(storage.uri, cluster.max_failures)],
        **where,
    )


def evaluation_options(cluster: ClusterConfig) -> dict[str, Any]:
    """Ray task options of an evaluation worker: a worker that dies is replaced and only its slice repeated."""
    return {
        "num_cpus": cluster.cpus_per_evaluation_worker,
        "num_gpus": cluster.gpus_per_evaluation_worker,
        "max_retries": 3,
        "retry_exceptions": False,
    }


def threads_for(cpus: float) -> int:
    """Threads for a process with that many CPUs, at least one."""
    return max(1, math.floor(cpus))
