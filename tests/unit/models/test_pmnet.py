"""PMNet's network: heads and tasks, what a partial task sees, switches, and the one vector of three distances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from pydantic import ValidationError
from torch import nn

from reid.contracts import PMNetOutput
from reid.models.backbone import BackboneConfig, build_backbone, split_last_stage
from reid.models.neck import GlobalAveragePooling, NeckConfig
from reid.models.part_attention import PartAttentionConfig
from reid.models.part_head import PartHead, PartHeadConfig
from reid.models.perspective import PlaneConfig, find_planes, warp_planes
from reid.models.pmnet import GlobalHeadConfig, PMNet, PMNetConfig, weighted_concatenation
from tests.reference import pmnet as reference

CLASSES = 5
SMALL: dict[str, Any] = {
    "backbone": {"name": "resnet18"},
    "global_head": {"channels": 24},
    "part_head": {"num_parts": 2, "branch_channels": 16},
}
BOXES = torch.tensor(
    [[[0.0, 0.0, 0.5, 0.5], [0.3, 0.4, 0.8, 0.9]], [[0.5, 0.1, 1.0, 0.6], [0.2, 0.5, 0.7, 1.0]]], dtype=torch.float32
)


def _model(**changes: Any) -> PMNet:
    torch.manual_seed(0)
    settings = SMALL | changes
    if changes.get("part_head"):
        settings["part_head"] = SMALL["part_head"] | changes["part_head"]
    return PMNet(PMNetConfig.model_validate(settings), CLASSES)


def _images(batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, 48, 64), dtype=torch.uint8, generator=generator)


def _masks(batch: int = 2) -> torch.Tensor:
    masks = torch.zeros(batch, 1, 48, 64, dtype=torch.uint8)
    masks[:, :, 10:, 8:50] = 1
    return masks


def _settled(model: PMNet) -> PMNet:
    """In evaluation, with statistics and shifts of the batch norms away from their start values."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def test_the_papers_network_has_the_papers_shapes() -> None:
    with torch.device("meta"):
        model = PMNet(PMNetConfig(), num_classes=576)
        images = torch.empty(2, 3, 256, 256)
        output = model(images, torch.empty(2, 1, 256, 256, dtype=torch.uint8), torch.empty(2, 3, 4))
        maps = model.trunk(images)
        assert maps.shape == (2, 1024, 16, 16)
        assert model.part_stage is not None
        assert model.part_stage(maps).shape == (2, 2048, 16, 16)
        assert model.feature_map(images).shape == (2, 4 * 512, 16, 16)
    assert output.features is not None
    assert output.logits is not None
    assert output.features.shape == (2, 512)
    assert output.logits.shape == (2, 576)
    for task in (output.main, output.partial):
        assert task is not None
        assert task.features.shape == (2, 3, 512)
        assert task.logits.shape == (2, 3, 576)
        assert task.joined_logits.shape == (2, 576)
    assert output.log_variances is model.log_variances
    assert model.feature_dim == 4 * 512


def test_both_heads_start_from_the_same_last_stage_and_part_ways() -> None:
    network = torchvision.models.resnet18(weights=None)
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    model = PMNet(PMNetConfig.model_validate(SMALL), CLASSES, state)
    assert model.global_stage is not None
    assert model.part_stage is not None
    whole = network.state_dict()
    for name, value in model.trunk.state_dict().items():
        assert torch.equal(value, whole[name]), name
    copies = zip(model.global_stage.parameters(), model.part_stage.parameters(), strict=True)
    for (name, original), (first, second) in zip(network.layer4.named_parameters(), copies, strict=True):
        assert torch.equal(first, original), name
        assert torch.equal(second, original), name
        assert first.data_ptr() != second.data_ptr()


def test_a_backbone_in_two_pieces_gives_the_same_map() -> None:
    backbone = build_backbone(BackboneConfig(name="resnet18")).eval()
    trunk, last_stage = split_last_stage(backbone)
    images = torch.randn(2, 3, 48, 64)
    with torch.inference_mode():
        assert torch.equal(last_stage(trunk(images)), backbone(images))
    names = {*trunk.state_dict(), *(f"layer4.{name}" for name in last_stage.state_dict())}
    assert names == set(backbone.state_dict())


@pytest.mark.parametrize("share", [True, False])
def test_heads_and_tasks_equal_the_loops_over_images_and_branches(share: bool) -> None:
    model = _settled(_model(part_head={"share_attention": share})).double()
    images, masks = _images(), _masks()
    with torch.inference_mode():
        output = model(images, masks, BOXES)
        normalised = (images.double() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        trunk = model.trunk(normalised)
        assert model.global_stage is not None
        assert model.part_stage is not None
        global_maps = model.global_convolution(model.global_stage(trunk))
        branches = model.part_head.convolution(model.part_stage(trunk))
    torch.testing.assert_close(output.features, global_maps.mean((2, 3)), atol=1e-6, rtol=1e-5)
    foreground = torch.from_numpy(reference.mask_on_map(masks[0, 0].numpy(), 3, 4))
    assert 0 < foreground.sum() < 12
    assert output.main is not None
    assert output.partial is not None
    for image in range(2):
        for k in range(2):
            own = branches[image, 16 * k : 16 * (k + 1)]
            crop = torch.from_numpy(reference.crop((own * foreground).numpy(), tuple(BOXES[image, k].tolist())))
            attention = model.part_head.attention[k]
            partial_attention = attention if share else model.part_head.partial_attention[k]  # type: ignore[index]
            with torch.inference_mode():
                main = attention(own[None])[0].mean((1, 2))
                partial = partial_attention(crop[None])[0].flatten(1).max(1).values
            assert partial.max() > 0.1
            torch.testing.assert_close(output.main.features[image, k], main, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(output.partial.features[image, k], partial, atol=1e-6, rtol=1e-5)
            for task, output_task in ((model.part_head.main, output.main), (model.part_head.partial, output.partial)):
                assert isinstance(task, nn.Module)
                with torch.inference_mode():
                    logits = task.necks[k](output_task.features[:, k])  # type: ignore[index, operator]
                torch.testing.assert_close(output_task.logits[image, k], logits[image])


def test_concatenations_have_their_own_bnneck_and_classifier() -> None:
    model = _settled(_model())
    with torch.inference_mode():
        output = model(_images(), _masks(), BOXES)
        for task, result in ((model.part_head.main, output.main), (model.part_head.partial, output.partial)):
            assert task is not None
            assert result is not None
            joined = torch.cat([result.features[:, 0], result.features[:, 1]], dim=1)
            expected = task.joined_neck.batch_norm(joined) @ task.joined_neck.classifier.weight.T
            torch.testing.assert_close(result.joined_logits, expected)
            assert task.joined_neck.classifier.bias is None
    necks = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert len(necks) == 1 + 2 * (2 + 1)


def test_shared_attention_trains_on_the_maps_of_both_tasks_as_one_batch() -> None:
    model = _model().train()
    seen: list[torch.Size] = []
    model.part_head.attention[0].register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].shape))
    model(_images(), _masks(), BOXES)
    assert seen == [torch.Size((4, 16, 3, 4))]
    apart = _model(part_head={"share_attention": False}).train()
    assert apart.part_head.partial_attention is not None
    assert sum(p.numel() for p in apart.parameters()) - sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in apart.part_head.partial_attention.parameters()
    )


@pytest.mark.parametrize(
    ("changes", "present"),
    [
        ({}, {"features", "main", "partial"}),
        ({"part_head": {"tasks": "main"}}, {"features", "main"}),
        ({"part_head": {"tasks": "partial"}}, {"features", "partial"}),
        ({"part_head": None}, {"features"}),
        ({"global_head": None}, {"main", "partial"}),
        ({"global_head": None, "part_head": {"tasks": "main"}}, {"main"}),
    ],
)
def test_switches_leave_what_they_should_and_every_weight_left_learns(
    changes: dict[str, Any], present: set[str]
) -> None:
    model = _model(**changes).train()
    arguments = (_images(), _masks(), BOXES) if model.needs_parts else (_images(),)
    output = model(*arguments)
    found = {name for name in ("features", "main", "partial") if getattr(output, name) is not None}
    assert found == present
    assert (output.logits is None) == (output.features is None)
    logits = [output.logits] if output.logits is not None else []
    for task in (output.main, output.partial):
        logits += [] if task is None else [task.logits, task.joined_logits]
    assert output.log_variances is not None
    weights = torch.linspace(-1, 1, CLASSES)
    (sum((weights * values).square().sum() for values in logits) + output.log_variances.sum()).backward()
    idle = {name for name, value in model.named_parameters() if value.requires_grad and value.grad is None}
    assert idle == set()
    parts = () if "main" in present or present == {"features"} else (_masks(), BOXES)
    assert model.eval().embed(_images(), *parts).shape == (2, model.feature_dim)


@pytest.mark.parametrize("num_parts", [1, 4, 6])
@pytest.mark.parametrize("kind", ["residual", "none"])
def test_any_number_of_parts_and_kind_of_attention(num_parts: int, kind: str) -> None:
    model = _model(part_head={"num_parts": num_parts, "attention": {"kind": kind}}).eval()
    boxes = torch.tensor([0.2, 0.3, 0.7, 0.8]).expand(2, num_parts, 4)
    with torch.inference_mode():
        output = model(_images(), _masks(), boxes)
        assert model.embed(_images(), _masks(), boxes).shape == (2, 24 + 2 * 16 * num_parts)
    assert output.main is not None
    assert output.main.features.shape == (2, num_parts, 16)


def test_a_part_without_foreground_gives_zeros_and_teaches_nothing() -> None:
    model = _model().eval()
    masks = _masks()
    masks[0] = 0
    images = _images().float().requires_grad_()
    output = model(images, masks, BOXES)
    assert output.partial is not None
    assert not output.partial.features[0].any()
    assert output.partial.features[1].any(1).all()
    output.partial.features.sum().backward()
    assert images.grad is not None
    assert [bool(gradient.any()) for gradient in images.grad] == [False, True]


def test_what_lies_outside_foreground_and_box_changes_no_partial_feature() -> None:
    head = PartHead(PartHeadConfig(num_parts=1, branch_channels=16), 8, CLASSES).eval()
    maps = torch.rand(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(1, 1, 4, 4)
    masks[..., 0] = 0
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5]]])
    changed = maps.clone()
    changed[..., 2:, :] += 1
    changed[..., :, 2:] += 1
    changed[..., 0] += 1
    pooling = GlobalAveragePooling()
    with torch.inference_mode():
        before, expected = head.features(maps, pooling, masks, boxes)
        main, actual = head.features(changed, pooling, masks, boxes)
    assert expected is not None
    assert actual is not None
    assert main is not None
    assert before is not None
    assert torch.equal(actual, expected)
    assert expected.max() > 0
    assert not torch.allclose(main, before)


def test_branches_do_not_depend_on_each_others_boxes() -> None:
    model = _model().eval()
    other = BOXES.clone()
    other[:, 1] = torch.tensor([0.1, 0.1, 0.6, 0.6])
    with torch.inference_mode():
        first, second = model(_images(), _masks(), BOXES).partial, model(_images(), _masks(), other).partial
    assert first is not None
    assert second is not None
    assert torch.equal(first.features[:, 0], second.features[:, 0])
    assert not torch.allclose(first.features[:, 1], second.features[:, 1])


def _similarity(output: PMNetOutput, model: PMNet) -> list[float]:
    """Cosine distances of the two images' f_g, g and h, from the features before the BNNecks."""
    head = model.part_head
    assert output.features is not None
    assert output.main is not None
    assert output.partial is not None
    assert head.main is not None
    assert head.partial is not None
    found = [
        model.global_neck.batch_norm(output.features),
        head.main.joined_neck.batch_norm(output.main.features.flatten(1)),
        head.partial.joined_neck.batch_norm(output.partial.features.flatten(1)),
    ]
    return [1 - F.cosine_similarity(rows[0].double(), rows[1].double(), dim=0).item() for rows in found]


@pytest.mark.parametrize("weights", ["learned", (3.0, 1.0, 2.0)])
def test_one_vectors_cosine_distance_is_the_weighted_mean_of_the_three(weights: Any) -> None:
    fixed = None if weights == "learned" else weights
    model = _settled(_model())
    assert model.log_variances is not None
    with torch.no_grad():
        model.log_variances.copy_(torch.tensor([-1.7, 9.0, 9.0, -1.5, 0.5]))
    expected_weights = fixed or [math.exp(1.7), math.exp(1.5), math.exp(-0.5)]
    if fixed is None:
        assert model.retrieval_weights().tolist() == pytest.approx(expected_weights)
    with torch.inference_mode():
        distances = _similarity(model(_images(), _masks(), BOXES), model)
        assert min(distances) > 1e-3
        for arguments, count in (((_masks(), BOXES), 3), ((), 2)):
            rows = model.embed(_images(), *arguments, weights=fixed).double()
            expected = sum(w * d for w, d in zip(expected_weights[:count], distances[:count], strict=True))
            expected /= sum(expected_weights[:count])
            assert 1 - (rows[0] @ rows[1]).item() == pytest.approx(expected, abs=1e-6)
            torch.testing.assert_close(rows.norm(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
            assert rows.shape[1] == 24 + 32 * (count - 1)


def test_retrieval_weights_stay_within_the_bounds_and_are_equal_without_learning() -> None:
    model = _model()
    assert model.log_variances is not None
    assert not model.log_variances.any()
    assert model.log_variances.dtype == torch.float32
    with torch.no_grad():
        model.log_variances.copy_(torch.tensor([-9.0, 0.0, 0.0, 9.0, 0.0]))
    assert model.retrieval_weights().tolist() == pytest.approx([54.59815, 0.01831564, 1.0])
    fixed = _model(learned_loss_weights=False)
    assert fixed.log_variances is None
    assert "log_variances" not in fixed.state_dict()
    assert fixed.retrieval_weights().tolist() == [1, 1, 1]


def test_concatenating_normalises_each_feature_first() -> None:
    features = [torch.tensor([[3.0, 4.0], [30.0, 40.0]]), torch.tensor([[0.0, 0.1], [-7.0, 0.0]])]
    rows = weighted_concatenation(features, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(rows[0, :2], torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(rows[:, :2], rows[:1, :2].expand(2, 2))
    torch.testing.assert_close(rows[1, 2:], torch.tensor([-(0.75**0.5), 0.0]))


def test_maps_pooled_are_the_features() -> None:
    for pooling in ("average", "gem"):
        model = _settled(_model(neck={"pooling": pooling}))
        with torch.inference_mode():
            maps = model.feature_map(_images())
            output = model(_images(), _masks(), BOXES)
        assert output.features is not None
        assert output.main is not None
        expected = torch.cat((output.features, output.main.features.flatten(1)), dim=1)
        torch.testing.assert_close(model.pooling(maps), expected)
        assert maps.shape[1] == model.feature_dim


def test_embedding_is_float32_under_autocast_and_needs_no_masks_by_default() -> None:
    model = _settled(_model())
    with torch.inference_mode():
        expected = model.embed(_images(), _masks(), BOXES)
        with torch.autocast("cpu", torch.bfloat16):
            half = model.embed(_images(), _masks(), BOXES)
            output = model(_images(), _masks(), BOXES)
        assert torch.equal(model.embed(_images().float()), model.embed(_images()))
    assert expected.dtype == half.dtype == torch.float32
    assert (expected * half).sum(1).min() > 0.99
    assert output.partial is not None
    assert output.partial.features.dtype == output.partial.joined_logits.dtype == torch.bfloat16
    assert output.log_variances is not None
    assert output.log_variances.dtype == torch.float32


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    model = _model()
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        model.embed(_images())
    with pytest.raises(ValueError, match="got no masks and no boxes"):
        model(_images())
    with pytest.raises(ValueError, match="got no boxes"):
        model.eval().embed(_images(), _masks())
    with pytest.raises(ValueError, match=r"boxes: expected \(2, 2, 4\) for 2 images of 2 parts, got \(2, 3, 4\)"):
        model(_images(), _masks(), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"masks: expected \(2, 1, H, W\), got \(2, 48, 64\)"):
        model(_images(), _masks()[:, 0], BOXES)
    with pytest.raises(ValueError, match="has no partial tasks that could use them"):
        _model(part_head={"tasks": "main"})(_images(), _masks(), BOXES)
    plain = _model(global_head=None, part_head={"tasks": "partial"}).eval()
    with pytest.raises(ValueError, match="need masks and boxes, got no masks and no boxes"):
        plain.embed(_images())
    with pytest.raises(ValueError, match="only partial tasks"):
        plain.feature_map(_images())


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least one is needed"):
        PMNetConfig(global_head=None, part_head=None)
    with pytest.raises(ValidationError, match="with tasks 'main' there is nothing to share"):
        PartHeadConfig(tasks="main", share_attention=False)
    with pytest.raises(ValidationError, match="attention 'none' has no parameters"):
        PartHeadConfig(attention=PartAttentionConfig(kind="none"), share_attention=False)
    with pytest.raises(ValidationError, match="num_parts"):
        PartHeadConfig(num_parts=7)


def test_without_its_convolution_the_global_head_is_the_baseline() -> None:
    config = PMNetConfig(
        backbone=BackboneConfig(name="resnet18"), neck=NeckConfig(), global_head=GlobalHeadConfig(channels=None)
    )
    model = PMNet(config, CLASSES).eval()
    assert model.global_stage is not None
    with torch.inference_mode():
        maps = model.global_stage(model.trunk(torch.randn(1, 3, 32, 32)))
        assert torch.equal(model.global_convolution(maps), maps)
    assert model.global_neck.batch_norm.num_features == 512


def test_planes_are_averages_of_the_global_heads_last_stage_and_only_for_training() -> None:
    model = _settled(_model(planes={}))
    images, masks = _images(), _masks()
    keypoints = torch.zeros(2, 20, 3)
    for number, (x, y) in {13: (5, 8), 14: (40, 10), 6: (41, 40), 5: (6, 37)}.items():  # the front
        keypoints[0, number - 1] = torch.tensor([x, y, 1.0])
    with torch.inference_mode():
        output = model(images, masks, BOXES, keypoints)
        assert model.global_stage is not None
        stage = model.global_stage(model.trunk(model.normalise_pixels(images)))
        planes = find_planes(keypoints, 48, 64, PlaneConfig())
        warped, _, _ = warp_planes(stage, planes, 48, 64, 16, 16)
        without = model(images, masks, BOXES)
    assert output.plane_visible is not None
    assert output.plane_features is not None
    assert output.plane_visible.tolist() == [[True, False, False, False], [False] * 4]
    torch.testing.assert_close(output.plane_features[0, 0], warped[0].mean((1, 2)), atol=1e-5, rtol=1e-5)
    assert not output.plane_features[1].any()
    assert without.plane_features is None
    assert without.features is not None
    assert output.features is not None
    assert torch.equal(without.features, output.features)
    assert len(model.state_dict()) == len(_model().state_dict())
