"""One training step: forward, loss, backward, one decision for all workers whether to take it, update."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.contracts import Batch, LossTerms, Settings
from reid.process_group import world_size
from reid.training.ema import MovingAverage
from reid.training.stragglers import ForwardClock


class StepConfig(Settings):
    """How a step is computed."""

    precision: Literal["auto", "bf16", "fp16", "float32"] = "auto"
    """Autocast type of the network; weights, losses and the optimiser stay float32. fp16 scales the loss. auto: bf16
    where the hardware computes in it, else fp16 on GPUs (V100, T4 and others of their age) and float32 elsewhere."""
    channels_last: bool = True
    """Memory layout of images, convolution weights and what is computed of them; same numbers, faster. False: plain
    contiguous."""
    accumulate_batches: int = Field(default=1, ge=1)
    """Batches per update. Each batch is mined by itself; the last group of an epoch may be smaller."""
    clip_gradient_norm: float | None = Field(default=None, gt=0)
    """Longest gradient (2-norm over all parameters) an update may have; None: unlimited."""
    max_consecutive_nonfinite: int = Field(default=10, ge=1)
    """The run is aborted after this many updates in a row whose loss or gradient was not finite. With fp16, whose
    scaler probes for the limit by overflowing, the abort comes when the loss scale falls below 1 instead."""
    sync_batchnorm: bool = False
    """Batch-norm statistics over all workers in every forward pass; CUDA only."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep a moving average of the weights and evaluate that; None: off. Typical 0.999."""


class NonFiniteLossError(RuntimeError):
    """Training was aborted because losses or gradients stayed non-finite; `report` says what was seen."""

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message, report)  # both, so that the error survives pickling between processes
        self.message = message
        self.report = report

    def __str__(self) -> str:
        return self.message


Objective = Callable[[Any, Any, int], LossTerms]
"""`(model output, targets, epoch) -> LossTerms`; the epoch being trained is 0-based."""


def images_and_keypoints(batch: Batch) -> tuple[Any, ...]:
    """What PPT's network takes of a batch."""
    return (batch.images, batch.keypoints)


def images_only(batch: Batch) -> tuple[Any, ...]:
    """What the keypoint detector takes of a batch."""
    return (batch.images,)


def images_and_parts(batch: Batch) -> tuple[Any, ...]:
    """What PMNet's network takes of a batch; masks and boxes are there when its partial tasks need them."""
    return (batch.images, batch.masks, batch.boxes, batch.keypoints)


def labels_of(batch: Batch) -> Tensor:
    """What a ReID objective compares the output with."""
    return batch.labels


def labels_and_masks_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """What PANet's objective compares the output with."""
    assert batch.masks is not None, "the run's settings ask for masks"
    return batch.labels, batch.masks


def keypoints_of(batch: Batch) -> Tensor:
    """What the keypoint detector's objective compares the output with."""
    return batch.keypoints


def resolve_precision(config: StepConfig, device: torch.device) -> Literal["bf16", "fp16", "float32"]:
    """The autocast type of a run on a device.

    Raises:
        ValueError: When a type was asked for that the processor can only emulate, about a hundred times slower.
    """
    if device.type == "cuda":
        has_bf16, has_fp16 = torch.cuda.is_bf16_supported(including_emulation=False), True
    else:
        # What oneDNN needs to convolve in these types: AVX-512 on x86.
        has_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        has_fp16 = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    match config.precision:
        case "auto":
            if has_bf16:
                return "bf16"
            return "fp16" if device.type == "cuda" else "float32"
        case "bf16" if not has_bf16:
            raise ValueError(f"step.precision bf16: this {device.type} has no bf16 arithmetic; set auto or float32")
        case "fp16" if not has_fp16:
            raise ValueError(f"step.precision fp16: this {device.type} has no fp16 arithmetic; set auto or float32")
        case precision:
            return precision


def describe_precision(config: StepConfig, device_type: str) -> str:
    """The autocast type of a run, as far as it can be told without its devices.

    >>> describe_precision(StepConfig(), "cuda")
    'bf16 (fp16 on GPUs without it)'
    """
    match config.precision, device_type:
        case "auto", "cuda":
            return "bf16 (fp16 on GPUs without it)"
        case "auto", _:
            return "bf16 (float32 on processors without it)"
        case precision, _:
            return precision


def prepare_model(model: nn.Module, config: StepConfig, device: torch.device) -> nn.Module:
    """The model on its device, in its memory layout, and wrapped for gradient averaging when there are several workers.

    The batch-norm statistics are not broadcast at each forward pass: `TrainingStep` averages them over the workers at
    each update, which sees all workers' images instead of rank 0's only.

    Raises:
        ValueError: When synchronised batch norm is asked for without CUDA.
    """
    if config.sync_batchnorm and device.type != "cuda":
        raise ValueError(f"step.sync_batchnorm works on CUDA only, this run uses {device.type}: set it to false")
    if config.sync_batchnorm and world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model = model.to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if world_size() == 1:
        return model
    # PyTorch 2.13 gave the switch a name of its own; the old one also turned off the broadcast at the start, of buffers
    # that are the same on all workers.
    has_new_name = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    no_broadcast: dict[str, Any] = {"forward_sync_buffers" if has_new_name else "broadcast_buffers": False}
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **no_broadcast,
    )


class TrainingStep:
    """Model, objective, optimiser, loss scaler and moving average of a run, and the step that moves them.

    Nothing here waits for the accelerator except where the optimiser cannot skip by itself (no fused kernel) and once
    in `max_consecutive_nonfinite` updates. PPT's network and loss do not either.

    A step with a non-finite loss or gradient on any worker is skipped on all of them, weights, moments, batch-norm
    statistics and all. No message is exchanged for that: a worker whose loss is not finite multiplies it by NaN, the
    gradient average carries the NaN to everybody, and the norm of the averaged gradient, which all workers compute
    alike, decides.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        config: StepConfig,
        *,
        inputs: Callable[[Batch], tuple[Any, ...]] = images_and_keypoints,
        targets: Callable[[Batch], Any] = labels_of,
    ) -> None:
        """Take what `prepare_model` and `build_optimizer` made.

        Args:
            model: As `prepare_model` returns it.
            objective: The loss; learnable loss weights belong into the model, where their gradients are averaged over
                the workers.
            optimizer: Over the model's parameters.
            config: Precision, accumulation, clipping.
            inputs: The arguments of the model's forward pass, taken from a batch on the device.
            targets: What the objective compares the output with, likewise.

        Raises:
            ValueError: When the objective has parameters of its own.
        """
        if isinstance(objective, nn.Module) and any(True for _ in objective.parameters()):
            raise ValueError(
                "the objective has learnable parameters: make them part of the model, so that workers average their "
                "gradients and checkpoints hold them"
            )
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.config = config
        self.inputs = inputs
        self.targets = targets
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.device = self.parameters[0].device
        self.precision = resolve_precision(config, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None
        self.ema = None if config.ema_decay is None else MovingAverage(self.bare_model, config.ema_decay)
        self.forward_clock = ForwardClock(self.device)
        self._autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": None}[self.precision]
        self._memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self._skips_by_itself = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        self._buffers = [buffer for buffer in self.bare_model.buffers() if buffer.is_floating_point()]
        self._good_buffers = self._flat_buffers()
        # Updates skipped so far, in a row now, and the longest row since the last look.
        self._nonfinite = torch.zeros(3, dtype=torch.int64, device=self.device)
        self._updates = 0
        self._recent: deque[dict[str, Any]] = deque(maxlen=2 * config.max_consecutive_nonfinite)

    @property
    def bare_model(self) -> nn.Module:
        """The model without its wrapper: what checkpoints hold and evaluation uses."""
        model = self.model
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        assert isinstance(bare, nn.Module)
        return bare

    def train_batch(
        self, batch: Batch, *, epoch: int = 0, group_size: int = 1, closes_group: bool = True
    ) -> dict[str, Tensor]:
        """Learn from one batch.

        Args:
            batch: This worker's images, on the processor or the device.
            epoch: Being trained, 0-based, for objectives that change on the way.
            group_size: Number of batches that share one update.
            closes_group: Whether this is the last of them: then the update happens.

        Returns:
            Detached scalars on the device, not waited for: `loss`, `loss/<part>`, the objective's statistics and, when
            the update happened, `gradient_norm` (before clipping) and `skipped` (0 or 1).

        Raises:
            NonFiniteLossError: On all workers at the same step, when too many updates in a row had to be skipped.
        """
        batch = batch.to(self.device, non_blocking=True, memory_format=self._memory_format)
        with self._gradients_stay_local(closes_group):
            autocast = torch.autocast(self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None)
            with autocast, self.forward_clock.running():
                output = self.model(*self.inputs(batch))
            terms = self.objective(output, self.targets(batch), epoch)
            loss = terms.total * torch.where(torch.isfinite(terms.total.detach()), 1.0 / group_size, float("nan"))
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        metrics = {"loss": terms.total.detach()}
        metrics.update({f"loss/{name}": value for name, value in terms.parts.items()})
        metrics.update(terms.statistics)
        self._recent.append({"samples": batch.samples, "metrics": metrics})
        if closes_group:
            norm, skipped = self._update()
            metrics["gradient_norm"], metrics["skipped"] = norm, skipped.float()
            self._count(skipped)
        return metrics

    @torch.no_grad()
    def _update(self) -> tuple[Tensor, Tensor]:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        skipped = ~torch.isfinite(norm)
        if self._skips_by_itself:
            self._step_on_device(norm, skipped)
        elif not bool(skipped):
            self._step_on_host(gradients, norm)
        if self.scaler is not None:
            self.scaler.update()
        for parameter in self.parameters:
            parameter.grad = None
        self._settle_buffers(skipped)
        if self.ema is not None:
            self.ema.update(skipped)
        return norm, skipped

    def _step_on_device(self, norm: Tensor, skipped: Tensor) -> None:
        """Fused kernels divide the gradient by `grad_scale` and do nothing when `found_inf` is 1: no host read."""
        optimizer: Any = self.optimizer
        limit = self.config.clip_gradient_norm
        optimizer.grad_scale = None if limit is None else ((norm + 1e-6) / limit).clamp(min=1.0)
        if self.scaler is not None:
            self.scaler.step(optimizer)  # sets found_inf and removes both attributes
            return
        optimizer.found_inf = skipped.float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf

    def _step_on_host(self, gradients: list[Tensor], norm: Tensor) -> None:
        limit = self.config.clip_gradient_norm
        if limit is not None:
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)

    def _flat_buffers(self) -> Tensor:
        if not self._buffers:
            return torch.zeros(0, device=self.device)
        return torch.cat([buffer.detach().reshape(-1).float() for buffer in self._buffers])

    def _settle_buffers(self, skipped: Tensor) -> None:
        """Average the batch-norm statistics over the workers; undo what a skipped step did to them."""
        if not self._buffers:
            return
        flat = self._flat_buffers()
        if world_size() > 1:
            dist.all_reduce(flat)
            flat /= world_size()
        elif self.device.type == "cpu" and not bool(skipped):
            self._good_buffers = flat
            return
        self._good_buffers = torch.where(skipped, self._good_buffers, flat)
        parts = torch.split(self._good_buffers, [buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(
            self._buffers, [part.view_as(buffer) for part, buffer in zip(parts, self._buffers, strict=True)]
        )

    def forget_skipped_state(self) -> None:
        """Take the model's present buffers as the good ones; called after weights were loaded into the model."""
        self._good_buffers = self._flat_buffers()

    def _count(self, skipped: Tensor) -> None:
        one = skipped.to(torch.int64)
        total, row, longest = self._nonfinite.unbind()
        row = (row + one) * one
        self._nonfinite = torch.stack([total + one, row, torch.maximum(longest, row)])
        self._updates += 1
        limit = self.config.max_consecutive_nonfinite
        if self.device.type == "cpu" or self._updates % limit == 0:
            self._abort_when_hopeless(limit)

    def _abort_when_hopeless(self, limit: int) -> None:
        longest = int(self._nonfinite[2])
        self._nonfinite[2] = self._nonfinite[1]
        if self.scaler is not None:
            scale = self.scaler.get_scale()
            if scale >= 1.0:
                return
            reason = f"the fp16 loss scale fell to {scale:g}, below 1"
        elif longest >= limit:
            reason = f"{longest} updates in a row had a loss or gradient that is not finite (limit {limit})"
        else:
            return
        if self.precision == "float32":
            remedy = "clip the gradient (training.step.clip_gradient_norm)"
        else:
            remedy = f"use {'bf16 or ' if self.precision == 'fp16' else ''}float32 (training.step.precision)"
        raise NonFiniteLossError(
            f"{reason}; weights are those of the last good step. Lower the learning rate, lengthen the warm-up or "
            f"{remedy}; the report lists the batches",
            self._report(reason),
        )

    def _report(self, reason: str) -> dict[str, Any]:
        return {
            "reason": reason,
            "learning_rates": [float(group["lr"]) for group in self.optimizer.param_groups],
            "updates_skipped": self.num_skipped,
            "batches": [
                {
                    "samples": entry["samples"].tolist(),
                    "metrics": {name: float(value) for name, value in entry["metrics"].items()},
                }
                for entry in self._recent
            ],
        }

    @property
    def num_skipped(self) -> int:
        """Updates skipped since the beginning of the run; waits for the device."""
        return int(self._nonfinite[0])

    def continue_count(self, num_skipped: int) -> None:
        """Go on counting skipped updates from a checkpoint's total."""
        self._nonfinite = torch.tensor([num_skipped, 0, 0], dtype=torch.int64, device=self.device)

    def _gradients_stay_local(self, closes_group: bool) -> AbstractContextManager[Any]:
        if not closes_group and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()
