"""PMNet itself under DistributedDataParallel: two workers leave the gradients of one process, whatever the losses use.

Batch norms are frozen: each worker's own statistics are the one thing in which two workers differ from one by design.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from reid.contracts import PMNET_IDENTITY_LOSSES
from reid.losses.pmnet import PMNetLossConfig, pmnet_loss
from reid.models.backbone import BackboneConfig
from reid.models.part_head import PartHeadConfig
from reid.models.perspective import PlaneConfig
from reid.models.pmnet import GlobalHeadConfig, PMNet, PMNetConfig
from reid.parts import uniform_stripes
from reid.training.step import StepConfig, prepare_model
from tests.processes import run

BATCH, PARTS, CLASSES, PIXELS = 8, 2, 4, 32
MODEL = PMNetConfig(
    backbone=BackboneConfig(name="resnet18", weights=None),
    global_head=GlobalHeadConfig(channels=8),
    part_head=PartHeadConfig(num_parts=PARTS, branch_channels=8),
    planes=PlaneConfig(),
)
LOSSES = {
    "fixed weights before HUL": PMNetLossConfig(uncertainty_from_epoch=1, fixed_weights=(2, 1, 1, 1, 1)),
    "HUL": PMNetLossConfig(),
    "no loss of f_M, f_P, g and h": PMNetLossConfig(identity_losses=("global",)),
}
"""Loss weights that are not learned yet and classifiers without a loss must not keep workers waiting."""
FRONT = {13: (5, 5), 14: (26, 6), 6: (27, 26), 5: (6, 25)}
"""Corners of a plane that all images show, give or take a few pixels."""


def _inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (BATCH, 3, PIXELS, PIXELS), generator=generator, dtype=torch.uint8)
    masks = (torch.rand(BATCH, 1, PIXELS, PIXELS, generator=generator) < 0.8).to(torch.uint8)
    boxes = torch.from_numpy(uniform_stripes(PARTS)).expand(BATCH, -1, -1).clone()
    keypoints = torch.zeros(BATCH, 20, 3)
    for number, corner in FRONT.items():
        keypoints[:, number - 1, :2] = torch.tensor(corner) + 4 * torch.rand(BATCH, 2, generator=generator)
        keypoints[:, number - 1, 2] = 1
    return images, masks, boxes, keypoints


def _gradients(rank: int, world_size: int) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    plain = PMNet(MODEL, CLASSES)
    labels = torch.arange(CLASSES).repeat(BATCH // CLASSES)
    own = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    found = {}
    for name, config in LOSSES.items():
        model = prepare_model(copy.deepcopy(plain), StepConfig(precision="float32"), torch.device("cpu")).train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        output = model(*(part[own] for part in _inputs()))
        terms = pmnet_loss(output, labels[own], config, epoch=0)
        assert terms.statistics["valid_anchors/front"] == 1
        terms.total.backward()
        bare = model if world_size == 1 else model.module
        found[name] = {key: value.grad.clone() for key, value in bare.named_parameters() if value.grad is not None}
    return found


def test_two_workers_leave_the_gradients_of_one_process() -> None:
    expected = _gradients(0, 1)
    learned = expected["HUL"]["log_variances"]
    assert (learned != 0).sum() == len(PMNET_IDENTITY_LOSSES)
    assert expected["fixed weights before HUL"].get("log_variances", torch.zeros(1)).abs().max() == 0
    for actual in run(_gradients, 2):
        for name, gradients in expected.items():
            # A worker has a gradient, if only zeros, for every parameter that one process has one for.
            assert gradients.keys() <= actual[name].keys()
            for key, gradient in gradients.items():
                scale = float(gradient.abs().max())
                error = float((actual[name][key] - gradient).abs().max())
                assert error <= 1e-4 * scale + 1e-7, (name, key)
