"""Which device a run takes, by what the cluster has."""

from __future__ import annotations

import pytest
import ray

from cluster.resources import resolve_device
from reid.config import ClusterConfig


@pytest.mark.parametrize(
    ("wish", "gpus", "workers", "device", "warning"),
    [
        ("auto", 0, 1, "cpu", "the cluster has no GPU: training on the CPU"),
        ("auto", 2, 4, "cpu", "2 GPU(s) for 4 workers: training on the CPU; cluster.num_workers=2 would use them"),
        ("auto", 4, 4, "cuda", ""),
        ("cuda", 4, 2, "cuda", ""),
        ("cpu", 4, 2, "cpu", ""),
    ],
)
def test_the_device_follows_the_wish_and_the_cluster(
    wish: str,
    gpus: int,
    workers: int,
    device: str,
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("RAY_AUTOSCALING", raising=False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(gpus)} if gpus else {"CPU": 8.0})
    assert resolve_device(ClusterConfig.model_validate({"device": wish, "num_workers": workers})) == device
    assert caplog.messages == ([warning] if warning else [])


def test_gpus_that_are_not_there_are_refused_unless_the_cluster_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.delenv("RAY_AUTOSCALING", raising=False)
    wish = ClusterConfig(device="cuda", num_workers=2)
    with pytest.raises(ValueError, match=r"num_workers is 2, but the cluster has 1 GPU\(s\); .* cluster\.device=cpu"):
        resolve_device(wish)
    monkeypatch.setenv("RAY_AUTOSCALING", "1")
    assert resolve_device(wish) == "cuda"
