"""Embedding batches in order, and putting slices together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.contracts import Batch
from reid.evaluation.extract import extract_features, join_embeddings, make_embeddings, select_embeddings
from tests.unit.evaluation.small_sets import random_embeddings

CPU = torch.device("cpu")


def batches(num, batch_size=4, first=10):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, 3, 6, 8), generator=generator, dtype=torch.uint8)
    for start in range(0, num, batch_size):
        part = images[start : start + batch_size]
        yield Batch(
            images=part,
            labels=torch.full((len(part),), -1),
            samples=torch.arange(first + start, first + start + len(part)),
            keypoints=torch.zeros(len(part), 20, 3),
        )


def columns_embed(images):
    """Left and right halves weigh differently, so that a mirror image has another feature."""
    return images.float().mean(dim=(1, 2))


def test_features_are_normalised_and_in_the_order_of_the_batches():
    features, rows = extract_features(columns_embed, batches(10), CPU)
    whole = columns_embed(torch.cat([batch.images for batch in batches(10)]))
    np.testing.assert_allclose(features, torch.nn.functional.normalize(whole).numpy(), atol=1e-6)
    assert features.dtype == np.float32
    assert rows.tolist() == list(range(10, 20))


def test_flip_averages_the_image_and_its_mirror_image():
    features, _ = extract_features(columns_embed, batches(5), CPU, flip=True)
    plain, _ = extract_features(columns_embed, batches(5), CPU)
    np.testing.assert_allclose(features, features[:, ::-1], atol=1e-6)
    assert not np.allclose(plain, plain[:, ::-1], atol=1e-3)


def test_bf16_features_are_close_and_float32():
    layer = torch.nn.Linear(3 * 6 * 8, 16)
    layer.requires_grad_(False)

    def embed(images):
        return layer(images.flatten(1).float() / 255)

    exact, _ = extract_features(embed, batches(6), CPU)
    rough, _ = extract_features(embed, batches(6), CPU, precision="bf16")
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=0.02)


@pytest.mark.parametrize(("value", "what"), [(0.0, "zero-norm"), (float("nan"), "non-finite")])
def test_a_feature_without_direction_is_named_by_its_row(value, what):
    def embed(images):
        features = torch.ones(len(images), 3)
        features[1] = value
        return features

    with pytest.raises(ValueError, match=f"index row 11 is {what}"):
        extract_features(embed, batches(4), CPU)


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match="got no batch"):
        extract_features(columns_embed, [], CPU)


def test_codes_are_looked_up_by_row():
    features = np.eye(2, dtype=np.float32)
    embeddings = make_embeddings(features, np.array([3, 1]), np.array([7, 8, 9, 10]), np.array([0, -1, 0, 2]))
    assert embeddings.vehicle_ids.tolist() == [10, 8]
    assert embeddings.camera_ids.tolist() == [2, -1]


def test_slices_join_in_any_order_and_repeats_do_no_harm():
    whole = random_embeddings(1, 20)
    slices = [select_embeddings(whole, np.arange(*span)) for span in ((12, 20), (0, 7), (7, 12), (0, 7))]
    joined = join_embeddings(slices)
    assert np.array_equal(joined.samples, whole.samples)
    assert np.array_equal(joined.features, whole.features)
    assert np.array_equal(joined.camera_ids, whole.camera_ids)


def test_missing_features_are_named():
    whole = random_embeddings(1, 20)
    with pytest.raises(ValueError, match=r"each of 3 images, 2 have none \(first: index row 25"):
        select_embeddings(whole, np.array([3, 25, 30]))
