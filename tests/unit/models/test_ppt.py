"""PPT's network: outputs in training, retrieval features, and a local branch that leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reid.losses.ppt import PPTLossConfig, ppt_loss
from reid.models.backbone import BackboneConfig
from reid.models.perspective import PlaneConfig, average_planes, find_planes, warp_planes
from reid.models.ppt import PPT, PPTConfig

SMALL = PPTConfig(backbone=BackboneConfig(name="resnet18"))
BASELINE = PPTConfig(backbone=BackboneConfig(name="resnet18"), planes=None)


def _model(config: PPTConfig = SMALL) -> PPT:
    torch.manual_seed(0)
    return PPT(config, num_classes=5)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four images of 64 x 96: front; front and side; side seen from the right; nothing visible."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 3, 64, 96), dtype=torch.uint8, generator=generator)
    keypoints = torch.full((4, 20, 3), -1.0)
    keypoints[..., 2] = 0
    front = {13: (5, 8), 14: (40, 10), 6: (41, 50), 5: (6, 47)}
    left = {14: (40, 10), 15: (80, 14), 2: (82, 44), 1: (44, 52)}
    right = {16: (12, 9), 13: (70, 12), 3: (66, 50), 4: (14, 55)}
    for image, points in enumerate((front, front | left, right)):
        for number, (x, y) in points.items():
            keypoints[image, number - 1] = torch.tensor([x, y, 1.0])
    return images, keypoints


def test_plane_features_are_the_averages_of_the_explicitly_warped_planes() -> None:
    model, (images, keypoints) = _model().eval(), _batch()
    with torch.inference_mode():
        output = model(images, keypoints)
        planes = find_planes(keypoints, 64, 96, PlaneConfig())
        warped, of_image, slot = warp_planes(model.feature_map(images), planes, 64, 96, 16, 16)
    assert output.plane_visible is not None
    assert output.plane_features is not None
    assert output.plane_visible.tolist() == [
        [True, False, False, False],
        [True, False, True, False],
        [False, False, True, False],
        [False, False, False, False],
    ]
    assert output.plane_features.shape == (4, 4, 512)
    torch.testing.assert_close(output.plane_features[of_image, slot], warped.mean((2, 3)), atol=1e-4, rtol=1e-4)
    assert (output.plane_features[~output.plane_visible] == 0).all()


def test_the_local_branch_changes_nothing_else_and_has_no_state() -> None:
    images, keypoints = _batch()
    with_branch, without = _model(), _model(BASELINE)
    assert with_branch.state_dict().keys() == without.state_dict().keys()
    assert not any("plane" in name for name, _ in with_branch.named_parameters())
    expected, actual = without(images, keypoints), with_branch(images, keypoints)
    assert torch.equal(actual.features, expected.features)
    assert torch.equal(actual.logits, expected.logits)
    assert expected.plane_features is None
    assert expected.plane_visible is None
    assert with_branch(images).plane_features is None  # no keypoints, no planes


def test_the_planes_gradient_reaches_the_backbone_only_from_images_that_show_one() -> None:
    model, (images, keypoints) = _model().eval(), _batch()
    images = images.float().requires_grad_()
    output = model(images, keypoints)
    output.plane_features.sum().backward()
    assert images.grad is not None
    assert [bool((gradient != 0).any()) for gradient in images.grad] == [True, True, True, False]


def test_embeddings_are_normalised_float32_and_the_same_for_uint8_and_float_images() -> None:
    model, (images, _) = _model().eval(), _batch()
    with torch.inference_mode():
        expected = model.embed(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = model.embed(images)
        assert torch.equal(model.embed(images.float()), expected)
    assert expected.dtype == half.dtype == torch.float32
    assert expected.shape == (4, model.feature_dim)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(4))
    assert (half * expected).sum(1).min() > 0.99


def test_embedding_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        _model().embed(_batch()[0])


def test_images_are_normalised_with_the_imagenet_constants_and_left_alone() -> None:
    model, (images, _) = _model().eval(), _batch()
    before = images.clone()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        normalised = (images.float() / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        torch.testing.assert_close(model.feature_map(images), model.backbone(normalised), atol=1e-4, rtol=1e-4)
    assert torch.equal(images, before)


def test_bfloat16_plane_features_are_close_to_float32() -> None:
    model, (images, keypoints) = _model().eval(), _batch()
    images = images.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        maps = model.feature_map(images)
        planes = find_planes(keypoints, 64, 96, PlaneConfig())
        expected = average_planes(maps.double(), planes, 64, 96, PlaneConfig())
        actual = average_planes(maps.bfloat16(), planes, 64, 96, PlaneConfig())
    assert actual.dtype == torch.bfloat16
    similarity = torch.cosine_similarity(actual.double(), expected, dim=-1)[planes.visible]
    assert similarity.min() > 0.9999


class HostIsFree(TorchDispatchMode):
    """Notes the operations for which the host of an accelerator would have to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default):
            waits = {index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)}
        # lift_fresh is what `torch.tensor` does with numbers of the host.
        if waits or func is torch.ops.aten.lift_fresh.default:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_what_a_host_waits_for() -> None:
    numbers = torch.tensor([1.0, 0.0])
    with HostIsFree() as host:
        numbers.nonzero()
        numbers[numbers > 0]
        numbers[numbers > 0] = numbers[:1]
        bool(numbers.sum() > 0)
        numbers.masked_select(numbers > 0)
        torch.tensor([1.0])
    assert len(host.seen) == 6, host.seen


def test_a_step_of_ppt_never_waits_for_the_accelerator() -> None:
    model, (images, keypoints) = _model(), _batch()
    labels = torch.tensor([0, 0, 1, 1])

    def step() -> torch.Tensor:
        output = model(images, keypoints)
        assert output.plane_visible is not None
        total = ppt_loss(output, labels, PPTLossConfig()).total
        total.backward()
        return output.plane_visible

    assert step().any()  # the first step copies the constants
    with HostIsFree() as host:
        step()
    assert host.seen == []


def test_ppt_has_the_same_shapes_for_any_keypoints() -> None:
    """On the meta device there are no values: what asks for one raises."""
    output = _model().to("meta")(torch.empty(4, 3, 64, 96, device="meta"), torch.empty(4, 20, 3, device="meta"))
    assert output.plane_features.shape == (4, 4, 512)
