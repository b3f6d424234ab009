"""A training step: ours against a bare PyTorch loop of the same network, and what PPT's and PMANet's parts add.

Variants on the same images, in an order shuffled each round, so that other load hits all of them equally:

    bare      torchvision's ResNet (last stride 1), pooling, batch norm, classifier, cross-entropy, Adam: a plain loop
    baseline  our PPT network with the local branch off, and its loss (identity + batch-hard triplet)
    control   the baseline once more: how far its ratio to the baseline is from 1 is what this machine can resolve
    ppt       the same with the local branch on, keypoints that show three planes of each vehicle
    branch    what that adds, alone and on a map that is there: planes, their averages and losses, forward and
              backward, and the sum of the map's two gradients; resolves what the ratio of whole steps does not
    pmanet    our PMNet network and its loss: two last stages, three branches of main and partial tasks
    combined  the same with PPT's planes on its global head

All with autocast, channels_last and the same optimiser. The figures are ratios within each round. "kept_megabytes" is
what the forward pass keeps for the backward pass (activations, each storage once, weights left out): the memory that
grows with the batch.

    python -m tests.benchmarks.bench_step --backbone resnet50 --size 256 --batch 16
    python -m tests.benchmarks.bench_step --backbone resnet18 --size 128 --batch 64
    python -m tests.benchmarks.bench_step --backbone resnet50 --size 256 --batch 8 --variants baseline pmanet combined
    python -m tests.benchmarks.bench_step --device cuda --backbone resnet50 --size 256 --batch 512 --peak-teraflops 989
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reid.losses.pmnet import PMNetLossConfig, pmnet_loss
from reid.losses.ppt import PPTLossConfig, ppt_loss
from reid.losses.visible_triplet import planes_loss
from reid.models.perspective import PlaneConfig, average_planes, find_planes
from reid.models.pmnet import PMNet, PMNetConfig
from reid.models.ppt import PPT, PPTConfig
from reid.parts import uniform_stripes
from reid.training.step import StepConfig, resolve_precision
from tests.benchmarks.machine import summary, write_result

NUM_CLASSES = 576
VARIANTS = ("bare", "baseline", "control", "ppt", "branch", "pmanet", "combined")
RATIOS = (
    ("baseline", "bare"), ("control", "baseline"), ("ppt", "baseline"), ("branch", "baseline"),
    ("pmanet", "baseline"), ("combined", "pmanet"),
)  # fmt: skip
NUM_PARTS = 3
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}


class BareNetwork(nn.Module):
    """What one would write by hand for the baseline."""

    def __init__(self, name: str) -> None:
        super().__init__()
        network = getattr(torchvision.models, name)(weights=None)
        for module in network.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
        self.body = nn.Sequential(*list(network.children())[:-2])
        self.batch_norm = nn.BatchNorm1d(network.fc.in_features)
        self.classifier = nn.Linear(network.fc.in_features, NUM_CLASSES, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.batch_norm(self.body(images).mean((2, 3))))


def keypoints_of_three_planes(batch: int, size: int) -> Tensor:
    """(B, 20, 3): front, left side and top of a box, as most images of VeRi show two or three planes."""
    points = {
        13: (10, 40),
        14: (40, 45),
        6: (42, 95),
        5: (12, 90),
        15: (90, 35),
        2: (88, 80),
        1: (48, 100),
        16: (62, 30),
    }
    keypoints = torch.zeros(batch, 20, 3)
    for number, (x, y) in points.items():
        keypoints[:, number - 1] = torch.tensor([x / 110 * size, y / 110 * size, 1.0])
    jitter = torch.randn(batch, 20, 2) * size / 200
    keypoints[..., :2] += jitter * keypoints[..., 2:]
    return keypoints


def training_steps(options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """One callable per variant that does one step."""
    device = torch.device(options.device)
    images = torch.randint(0, 256, (options.batch, 3, options.size, options.size), dtype=torch.uint8)
    images = images.to(device, memory_format=torch.channels_last)
    labels = (torch.arange(options.batch) // 4 % NUM_CLASSES).to(device)
    keypoints = keypoints_of_three_planes(options.batch, options.size).to(device)
    dtype = PRECISIONS[options.precision]
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    loss_config, parts_loss_config = PPTLossConfig(), PMNetLossConfig()
    masks = torch.zeros(options.batch, 1, options.size, options.size, dtype=torch.uint8)
    masks[:, :, options.size // 8 :, options.size // 8 : -options.size // 8] = 1
    masks = masks.to(device)
    boxes = torch.from_numpy(uniform_stripes(NUM_PARTS)).float().expand(options.batch, -1, -1).to(device)

    def prepared(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]:
        model = model.to(device, memory_format=torch.channels_last)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=1e-5, fused=True)
        return model, optimizer, torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")

    bare, bare_optimizer, bare_scaler = prepared(BareNetwork(options.backbone))
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1) * 255
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1) * 255

    def bare_step() -> None:
        bare_optimizer.zero_grad(set_to_none=True)
        with autocast:
            logits = bare((images - mean) / deviation)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        bare_scaler.scale(loss).backward()
        bare_scaler.step(bare_optimizer)
        bare_scaler.update()

    def step_of(config: PPTConfig) -> Callable[[], None]:
        torch.manual_seed(0)  # the same weights in all
        model, optimizer, scaler = prepared(PPT(config, NUM_CLASSES))

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                output = model(images, keypoints)
            loss = ppt_loss(output, labels, loss_config).total
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return step

    def branch_step() -> Callable[[], None]:
        planes_config = PlaneConfig()
        channels = BareNetwork(options.backbone).classifier.in_features
        shape = (options.batch, channels, options.size // 16, options.size // 16)
        maps = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        other_gradient = torch.randn_like(maps)
        maps.requires_grad_()

        def step() -> None:
            maps.grad = None
            planes = find_planes(keypoints, options.size, options.size, planes_config)
            with autocast:
                averages = average_planes(maps, planes, options.size, options.size, planes_config)
            planes_loss(averages, planes.visible, labels, loss_config.planes)[0].backward()
            assert maps.grad is not None
            maps.grad.add_(other_gradient)

        return step

    def part_step_of(config: PMNetConfig) -> Callable[[], None]:
        torch.manual_seed(0)
        model, optimizer, scaler = prepared(PMNet(config, NUM_CLASSES))

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                output = model(images, masks, boxes, keypoints)
            loss = pmnet_loss(output, labels, parts_loss_config, 0).total
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return step

    backbone = {"name": options.backbone}
    steps = {
        "bare": lambda: bare_step,
        "baseline": lambda: step_of(PPTConfig.model_validate({"backbone": backbone, "planes": None})),
        "control": lambda: step_of(PPTConfig.model_validate({"backbone": backbone, "planes": None})),
        "ppt": lambda: step_of(PPTConfig.model_validate({"backbone": backbone})),
        "branch": branch_step,
        "pmanet": lambda: part_step_of(PMNetConfig.model_validate({"backbone": backbone})),
        "combined": lambda: part_step_of(PMNetConfig.model_validate({"backbone": backbone, "planes": {}})),
    }
    return {name: steps[name]() for name in options.variants}


def kept_bytes(step: Callable[[], None]) -> int:
    """What one step's forward pass keeps for its backward pass, each storage once, parameters left out."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(storages.values())


def floating_point_operations(name: str, size: int) -> int:
    """Of one image, forward and backward, as the counter of torch sees them (a multiply-add is two)."""
    network = BareNetwork(name).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size)).sum().backward()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["auto", *sorted(PRECISIONS)], default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, each runs every variant")
    parser.add_argument("--steps", type=int, default=1, help="steps per variant and round (use 10 or more on a GPU)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--peak-teraflops", type=float, help="of the device at this precision, for the share reached")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    options.precision = resolve_precision(StepConfig(precision=options.precision), torch.device(options.device))
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True

    steps = training_steps(options)
    synchronize = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    order = random.Random(0)
    for round_number in range(-2, options.rounds):
        order.shuffle(names)
        for name in names:
            synchronize()
            # CPU-seconds where the CPU does the work: another process on the machine then costs cache only.
            clock = time.perf_counter if options.device.startswith("cuda") else time.process_time
            started = clock()
            for _ in range(options.steps):
                steps[name]()
            synchronize()
            if round_number >= 0:
                seconds[name].append((clock() - started) / options.steps)

    operations = floating_point_operations(options.backbone, options.size)
    result: dict[str, object] = {"options": {k: str(v) for k, v in vars(options).items() if k != "output"}}
    for name, values in seconds.items():
        timing = summary(values)
        row = {
            "seconds_per_step": round(timing.median, 5),
            "spread": round(timing.spread, 3),
        }
        if name != "branch":
            row["images_per_second"] = round(options.batch / timing.median, 2)
            row["teraflops"] = round(operations * options.batch / timing.median / 1e12, 4)
        row["kept_megabytes"] = round(kept_bytes(steps[name]) / 1e6, 1)
        if options.peak_teraflops and "teraflops" in row:
            row["share_of_peak"] = round(row["teraflops"] / options.peak_teraflops, 4)
        result[name] = row
        print(f"{name:9s} " + "  ".join(f"{key} {value}" for key, value in row.items()))
    for name, reference in RATIOS:
        if name in seconds and reference in seconds:
            ratios = [a / b for a, b in zip(seconds[name], seconds[reference], strict=True)]
            result[f"{name}_over_{reference}"] = {
                "median": round(median(ratios), 4),
                "lowest": round(min(ratios), 4),
                "highest": round(max(ratios), 4),
            }
            print(f"{name} / {reference}: {result[f'{name}_over_{reference}']}")
    if options.output is not None:
        write_result(options.output, "step", result)


if __name__ == "__main__":
    main()
