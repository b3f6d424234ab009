"""Small retrieval problems for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.contracts import Embeddings
from reid.evaluation.distances import normalised


def random_problem(seed, num_queries, gallery_size, num_ids=8, num_cameras=4, levels=None, separation=0.0):
    """Distances, query ids and cameras, gallery ids and cameras; `levels` different distances make ties."""
    generator = np.random.default_rng(seed)
    query_ids = generator.integers(0, num_ids, num_queries)
    gallery_ids = generator.integers(0, num_ids, gallery_size)
    distances = generator.normal(1.0, 0.1, (num_queries, gallery_size))
    distances -= separation * (query_ids[:, None] == gallery_ids)
    if levels:
        distances = np.round(distances * levels) / levels
    return (
        distances.astype(np.float32),
        query_ids,
        generator.integers(0, num_cameras, num_queries),
        gallery_ids,
        generator.integers(0, num_cameras, gallery_size),
    )


def random_embeddings(seed, num, dim=32, num_ids=12, num_cameras=4, first_sample=0, noise=1.0):
    """Features around a centre per identity; the same centres for every seed."""
    centres = np.random.default_rng(99).standard_normal((num_ids, dim))
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, num_ids, num)
    features = centres[ids] + noise * generator.standard_normal((num, dim))
    return Embeddings(
        features=normalised(features),
        vehicle_ids=ids,
        camera_ids=generator.integers(0, num_cameras, num),
        samples=np.arange(first_sample, first_sample + num),
    )


@dataclass
class Columns:
    """The columns of an index that protocols look at."""

    split: np.ndarray
    vehicle_id: np.ndarray
    camera_id: np.ndarray
    subsets: list
    key: np.ndarray

    def rows(self, split, subset=None):
        rows = np.flatnonzero(self.split == split)
        if subset is None:
            return rows
        if not any(subset in self.subsets[row] for row in rows):
            raise ValueError(f"no image of split {split!r} is in subset {subset!r}; known: none")
        return np.array([row for row in rows if not self.subsets[row] or subset in self.subsets[row]], np.int64)


def columns(entries):
    """An index from (split, vehicle, camera, subsets) entries."""
    split, vehicle, camera, subsets = zip(*entries, strict=True)
    keys = np.array([f"image-{number}" for number in range(len(split))], object)
    return Columns(np.array(split, object), np.array(vehicle, object), np.array(camera, object), list(subsets), keys)
