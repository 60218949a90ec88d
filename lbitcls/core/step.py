"""Training step: forward under autocast, backward, accumulation, clipping, optimizer step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lbitcls.core.gradients import Gradients
from lbitcls.core.optim import load_optimizer
from lbitcls.core.optimizer_pair import optimizer_name
from lbitcls.settings.training_sections import Autocast, GradClip, OptimizerConfig
from lbitcls.utils.checkpoint_content import shown_name
from lbitcls.utils.dist import sum_over_ranks, world_size
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import get_logger

Batch = dict[str, torch.Tensor]
_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """Precision of a forward pass: dtype of autocast (None: off), and the loss scale for float16."""

    dtype: torch.dtype | None = None
    loss_scale: float | str = "dynamic"


def read_precision(amp: Autocast | None, fp16: Autocast | None = None) -> Precision:
    """Return the precision that the sections `amp` and `fp16` (the older one) set; float32 if both are None.

    Raises:
        ConfigError: both sections are given.
    """
    if amp is not None and fp16 is not None:
        raise ConfigError("amp and fp16 are the same setting; give only one of them.")
    asked = fp16 if amp is None else amp
    if asked is None:
        return Precision()
    return Precision(_DTYPES[asked.dtype or ("bf16" if amp is not None else "fp16")], asked.loss_scale)


class OptimizerStep:
    """Training step that turns batches into optimizer steps.

    Each group of `cumulative_iters` batches makes one step; the last group of an epoch may be smaller. The gradient is
    the mean over the group's samples, as if they were one batch. With several processes it covers the samples of all:
    their numbers are given (`share`), or, if they are not known before (`uneven`), summed before the reduction.

    Args:
        optimizer: steps once for each group.
        device: where the model is.
        grad_clip: clipping of the gradient's norm, also as `dict(max_norm=…, norm_type=2)`.
        cumulative_iters: batches in a group.
        precision: autocast and the scale of the loss.
        penalty: a further loss (the quantizers'), computed from the parameters alone.
        uneven: the processes' batches may differ in size in a way that `share` does not tell.
        arguments: from a batch to the model's arguments by name; None: its images (or features) and labels.
        undivided: parameters that every process has whole although others are distributed.

    Attributes:
        penalties: further losses that are added, by their names in the outputs; `penalty` is `loss_quant`. A hook may
            add one. A number, as opposed to a tensor, adds nothing.
        inspect: Function called with each batch, its outputs and True if it ends its group, after the backward pass;
            if it returns False for a batch, the group makes no step. It may remove outputs.
        refused: True if the last group made no step because of `inspect`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        grad_clip: GradClip | dict[str, Any] | None = OptimizerConfig.grad_clip,
        cumulative_iters: int = OptimizerConfig.cumulative_iters,
        precision: Precision | None = None,
        penalty: Callable[[], torch.Tensor | float] | None = None,
        uneven: bool = False,
        arguments: Callable[[Batch], dict[str, Any]] | None = None,
        undivided: Sequence[nn.Parameter] = (),
    ) -> None:
        given: Any = {"grad_clip": grad_clip, "cumulative_iters": cumulative_iters}
        checked = OptimizerConfig(**given)
        self.optimizer = optimizer
        self.device = device
        self.grad_clip = checked.grad_clip
        self.cumulative_iters = checked.cumulative_iters
        self.precision = precision or Precision()
        self.penalties: dict[str, Callable[[], torch.Tensor | float]] = (
            {} if penalty is None else {"loss_quant": penalty}
        )
        self.inspect: Callable[[Batch, dict[str, torch.Tensor], bool], bool] | None = None
        self.refused = False
        self.uneven = uneven
        self.arguments = arguments
        self.scaler = _scaler(self.precision, device)
        self._gradients = Gradients([p for group in optimizer.param_groups for p in group["params"]], undivided)
        self._seen = 0  # samples of the group so far, on this rank
        self._everywhere = 0  # on all ranks
        self._first = 0.0  # samples of its first batch per process, the same number on all ranks
        self._size = 0
        self._open = False
        self._stepped = False

    def __call__(
        self, model: nn.Module, batch: Batch, index: int, total: int, share: tuple[int, int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Train on `batch`; return the model's outputs, detached.

        Args:
            model: Model, wrapped by DDP if there are several processes.
            batch: Batch on the model's device.
            index: Number of the batch in the epoch.
            total: Number of batches in the epoch.
            share: Numbers of samples in the batch on this rank and on all; with 0 on this rank, the batch does not
                count. None: each rank has as many.
        """
        ends = self.ends_group(index, total)
        if starts := index % self.cumulative_iters == 0 or not self._open:
            self._start_group(index, total)
        size = self._size
        hold = model.no_sync() if isinstance(model, DistributedDataParallel) and not ends else contextlib.nullcontext()
        with hold:
            outputs = self.forward(model, batch)
            samples = 0 if share is not None and share[0] == 0 else len(batch["gt_label"])
            if starts:
                self._first = samples if share is None else share[1] / world_size()
            self._seen += samples
            self._everywhere += samples * world_size() if share is None else share[1]
            loss = outputs["loss"]
            if not loss.requires_grad:
                raise ConfigError(
                    "nothing is trained: every part with weights is frozen (frozen, frozen_stages, UnfreezeHook). "
                    "Leave a part trainable, such as the head."
                )
            expected = self._first * size
            seen = self._mean_seen(loss.dtype) if ends else expected
            if isinstance(seen, torch.Tensor) or seen != expected:  # the group's batches differ in size
                if size > 1:
                    self._gradients.scale(expected / seen)
                weighted = loss * (samples / seen)
            else:
                weighted = loss if samples == expected else loss * (samples / expected)
            self.scaler.scale(weighted).backward()
        result = {name: value.detach() for name, value in outputs.items()}
        if ends and self._gradients.sharded:
            self._finish_gradients(result)
        good = self.inspect is None or self.inspect(batch, result, ends)
        self.refused = not good or (self.refused and not starts)
        self._open = not ends
        if ends and not self.refused:
            self._update(result)
        return result

    def _start_group(self, index: int, total: int) -> None:
        """Start a group with batch `index`: in an epoch that is entered in its middle, possibly a shorter one."""
        self.optimizer.zero_grad()  # here, not after the step, where freeing them makes glibc trim the heap
        end = min(index - index % self.cumulative_iters + self.cumulative_iters, total)
        self._size, self._seen, self._everywhere, self._open = end - index, 0, 0, True

    def ends_group(self, index: int, total: int) -> bool:
        """Return True if the optimizer steps after batch `index` of `total`."""
        return (index + 1) % self.cumulative_iters == 0 or index + 1 == total

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the model's outputs for `batch` in the step's precision, `loss` with all penalties."""
        dtype = self.precision.dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            try:
                if self.arguments is not None:
                    outputs = model(**self.arguments(batch))
                elif "features" in batch:
                    outputs = model(features=batch["features"], gt_label=batch["gt_label"])
                else:
                    outputs = model(batch["img"], gt_label=batch["gt_label"], return_loss=True)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ConfigError(
                    f"a batch of {len(batch['gt_label'])} is too small for BatchNorm, which gets one value per "
                    "channel from it. If it is the epoch's last batch, set data.drop_last=True; otherwise increase "
                    "data.samples_per_gpu."
                ) from error
        for name, compute in self.penalties.items():
            penalty = compute()
            if isinstance(penalty, torch.Tensor):
                outputs = {**outputs, "loss": outputs["loss"] + penalty, name: penalty}
        return outputs

    def _mean_seen(self, dtype: torch.dtype) -> float | torch.Tensor:
        """Return the mean number of the group's samples per process; a tensor if uneven, so that none waits."""
        if world_size() == 1:
            return self._seen
        if not self.uneven:
            return self._everywhere / world_size()
        number = torch.tensor(self._seen, dtype=torch.int64, device=self.device)
        return sum_over_ranks(number).to(torch.promote_types(dtype, torch.float32)) / world_size()

    def _finish_gradients(self, result: dict[str, torch.Tensor]) -> None:
        """Average and clip distributed gradients, before `inspect`: processes that refuse the step take part."""
        self._gradients.average()
        if self.grad_clip is not None:
            result["grad_norm"] = self._gradients.clip(self.grad_clip)

    def _update(self, result: dict[str, torch.Tensor]) -> None:
        if self.grad_clip is not None and not self._gradients.sharded:
            self.scaler.unscale_(self.optimizer)
            result["grad_norm"] = self._gradients.clip(self.grad_clip)
        try:
            self.scaler.step(self.optimizer)
        except (ValueError, TypeError, RuntimeError) as error:
            if self._stepped or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ConfigError(f"optimizer: {optimizer_name(self.optimizer)} cannot train this: {error}") from error
        self._stepped = True
        self.scaler.update()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint's `optimizer` and `scaler`; the config's settings take precedence.

        The last step's learning rate stays as saved, for a checkpoint that is saved again before the next step.
        """
        self._open = False
        own = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in self.optimizer.param_groups]
        load_optimizer(self.optimizer, state["optimizer"])
        changed = set()
        for group, settings in zip(self.optimizer.param_groups, own):
            changed |= {f"{k} {group[k]} -> {v}" for k, v in settings.items() if group.get(k) != v}
            group.update(settings)
        if changed:
            names = shown_name(", ".join(sorted(changed)))
            get_logger().warning("Resuming the optimizer with other settings: %s", names)
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def _scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    enabled = precision.dtype is torch.float16 and device.type == "cuda"
    if precision.loss_scale == "dynamic":
        return torch.amp.GradScaler(device.type, enabled=enabled)
    never = 2**31 - 1  # a fixed scale does not grow, but an overflow still halves it
    return torch.amp.GradScaler(
        device.type, init_scale=float(precision.loss_scale), growth_interval=never, enabled=enabled
    )
