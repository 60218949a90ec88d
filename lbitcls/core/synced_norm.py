"""BatchNorm over the batches of all processes (`sycbn`), also on a CPU, where PyTorch's own refuses.

Mean and variance are those of all processes' values: two sums over the processes, of the values and of the squared
distances from their mean (the sum of squares instead would cancel), and the same in the backward pass. The gradient
is that of the sum of the processes' losses, which DDP divides by their number, as it does elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lbitcls.utils.dist import world_size


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all processes, whose losses are summed too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` for any device and backend; each process must call it equally often in training.

    DDP refuses that class, and those derived from it, on a CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Input (N, C, ...) to the same shape."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        x = input.float()
        shape = (1, -1, *(1 for _ in input.shape[2:]))
        dims = (0, *range(2, input.dim()))
        count = x.new_tensor([x.numel() / x.shape[1]])
        totals = _sum(torch.cat([x.sum(dims), count]))
        mean, count = totals[:-1] / totals[-1], totals[-1].detach()
        centered = x - mean.view(shape)
        var = _sum(centered.square().sum(dims)) / count
        self._track(mean.detach(), var.detach() * count / (count - 1))
        y = centered * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions: it replaces `BatchNorm1d` and `BatchNorm3d` too."""

    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Update the running statistics with a batch's mean and unbiased variance, each (C,)."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(var, weight)


def _sum(tensor: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(tensor)
    return total


def synchronize_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with BatchNorms that use the batches of all processes.

    Args:
        model: Model; its tensors are kept.
        device: Device that it will train on: PyTorch's own class on a GPU, `SyncedBatchNorm` elsewhere.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = SyncedBatchNorm  # the same tensors; only its forward pass differs
    return model
