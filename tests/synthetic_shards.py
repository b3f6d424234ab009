"""A small shard set of synthetic vehicles, for tests and benchmarks that need whole runs."""

from __future__ import annotations

from pathlib import Path

from reid.data.readers import DatasetConfig, read_dataset
from reid.data.shards import PackConfig, pack_shards
from reid.data.synthetic import SyntheticConfig, write_synthetic_veri


def small_config(num_train_identities: int, num_test_identities: int, num_cameras: int) -> SyntheticConfig:
    """One image of each vehicle from each camera."""
    return SyntheticConfig(
        num_train_identities=num_train_identities,
        num_test_identities=num_test_identities,
        num_cameras=num_cameras,
        cameras_per_identity=num_cameras,
        images_per_camera=1,
    )


def pack_synthetic(folder: Path, config: SyntheticConfig, name: str) -> Path:
    """Draws the vehicles below a folder and packs them.

    Returns:
        The folder of the set.
    """
    write_synthetic_veri(folder / "raw", config)
    records = read_dataset(DatasetConfig(format="veri776", root=str(folder / "raw")))
    pack_shards(records, folder / "shards", PackConfig(name=name))
    return folder / "shards"
