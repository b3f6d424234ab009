"""PANet's network: two branches on one encoder, masks of the image's size, and attention maps for the parts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from reid.contracts import PANetOutput
from reid.models.attention import AttentionConfig, trilinear_attention
from reid.models.backbone import BackboneConfig
from reid.models.panet import PANet, PANetConfig
from reid.models.ppt import PPT, PPTConfig

ENCODER = BackboneConfig(name="resnet18")
SMALL = PANetConfig(backbone=ENCODER, decoder_channels=(16, 8, 4))


def _model(config: PANetConfig = SMALL) -> PANet:
    torch.manual_seed(0)
    return PANet(config, num_classes=5)


def _images(height: int = 32, width: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


def test_the_papers_network_leads_from_a_map_of_16_back_to_the_image_of_256() -> None:
    with torch.device("meta"):
        model = PANet(PANetConfig(), num_classes=576)
        images = torch.empty(2, 3, 256, 256)
        output = model(images)
        assert model.feature_map(images).shape == (2, 2048, 16, 16)
    assert output.features.shape == (2, 2048)
    assert output.logits.shape == (2, 576)
    assert output.masks.shape == (2, 1, 256, 256)
    kinds = [type(layer) for layer in model.decoder]
    assert kinds == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU] * 3 + [nn.ConvTranspose2d]
    convolutions = [layer for layer in model.decoder if isinstance(layer, nn.ConvTranspose2d)]
    steps = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    assert steps == [(2048, 256), (256, 128), (128, 64), (64, 1)]
    assert {(layer.kernel_size, layer.stride, layer.padding) for layer in convolutions} == {((4, 4), (2, 2), (1, 1))}


def test_the_usual_image_needs_no_resize() -> None:
    model, images = _model().eval(), _images()
    with torch.inference_mode():
        output = model(images)
        assert torch.equal(output.masks, model.decoder(model.feature_map(images)))
    assert output.masks.shape == (2, 1, 32, 48)
    assert output.masks.std() > 0


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (SMALL.model_copy(update={"backbone": BackboneConfig(name="resnet18", last_stride=2)}), (32, 48)),
        (SMALL.model_copy(update={"decoder_channels": (8,)}), (32, 48)),
        (SMALL, (30, 45)),
    ],
    ids=["stride 32", "one block", "odd sides"],
)
def test_masks_of_another_size_are_resized_to_the_image_like_opencv_does(
    config: PANetConfig, size: tuple[int, int]
) -> None:
    model, images = _model(config).eval(), _images(*size)
    with torch.inference_mode():
        actual = model(images).masks
        small = model.decoder(model.feature_map(images)).numpy()
    assert actual.shape == (2, 1, *size)
    assert small.shape[2:] != size
    for image in range(2):
        expected = cv2.resize(small[image, 0], size[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(actual[image, 0].numpy(), expected, atol=1e-5)
    assert np.abs(expected).max() > 0.01


def test_without_blocks_the_decoder_only_doubles() -> None:
    model, images = _model(SMALL.model_copy(update={"decoder_channels": ()})).eval(), _images()
    with torch.inference_mode():
        assert model.decoder(model.feature_map(images)).shape == (2, 1, 4, 6)
        assert model(images).masks.shape == (2, 1, 32, 48)


def test_each_branch_teaches_the_encoder_and_nothing_of_the_other_branch() -> None:
    def reached(output: PANetOutput, model: PANet, name: str) -> set[str]:
        getattr(output, name).square().sum().backward()
        return {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}

    for name, expected in {
        "masks": {"backbone", "decoder"},
        "features": {"backbone"},
        "logits": {"backbone", "neck"},
    }.items():
        model = _model()
        assert reached(model(_images()), model, name) == expected


def test_every_trained_parameter_learns_from_the_sum() -> None:
    model = _model()
    output = model(_images())
    (output.logits.square().sum() + output.masks.square().sum()).backward()
    idle = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    assert idle == {"neck.batch_norm.bias"}


def test_classification_branch_and_images_are_treated_as_in_ppt() -> None:
    model = _model().eval()
    torch.manual_seed(0)
    baseline = PPT(PPTConfig(backbone=ENCODER, planes=None), num_classes=5).eval()
    images = _images()
    with torch.inference_mode():
        expected, actual = baseline(images), model(images)
        assert torch.equal(actual.features, expected.features)
        assert torch.equal(actual.logits, expected.logits)
        assert torch.equal(model.embed(images), baseline.embed(images))
        assert torch.equal(model(images.float()).masks, actual.masks)


def test_locating_gives_the_masks_and_the_attention_of_one_pass() -> None:
    images = _images()
    for attention in (AttentionConfig(), AttentionConfig(scaled=False)):
        model = _model(SMALL.model_copy(update={"attention": attention})).eval()
        with torch.inference_mode():
            masks, maps = model.locate(images)
            assert torch.equal(masks, model(images).masks)
            assert torch.equal(maps, trilinear_attention(model.feature_map(images), attention))
        assert maps.shape == (2, model.feature_dim, 2, 3)


def test_masks_have_the_dtype_of_autocast_also_after_a_resize_and_attention_stays_float32() -> None:
    model = _model().eval()
    for images in (_images(), _images(30, 45)):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            output = model(images)
            masks, maps = model.locate(images)
        assert {output.features.dtype, output.logits.dtype, output.masks.dtype, masks.dtype} == {torch.bfloat16}
        assert maps.dtype == torch.float32


def test_attention_has_no_state() -> None:
    assert (
        _model().state_dict().keys()
        == _model(SMALL.model_copy(update={"attention": AttentionConfig(scaled=False)})).state_dict().keys()
    )


@pytest.mark.parametrize("name", ["embed", "locate"])
def test_inference_in_training_mode_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: the model is in training mode; call model\.eval\(\)"):
        getattr(_model(), name)(_images())


def test_a_block_without_channels_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"decoder_channels\.1"):
        PANetConfig.model_validate({"decoder_channels": [64, 0]})
