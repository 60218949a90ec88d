"""Tensors of which each process holds a part (`torch.distributed.tensor.DTensor`, as FSDP makes parameters).

Importing DTensor takes time, so it is looked up: without the import there is no such tensor.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def is_shard(tensor: Any) -> bool:
    """Return True if each process holds only a part of `tensor`."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def has_shards(model: nn.Module) -> bool:
    """Return True if a parameter of `model` is distributed over the processes."""
    return any(map(is_shard, model.parameters()))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part, in the same memory: the tensor itself if it is not distributed."""
    part: Any = tensor
    return part.to_local() if is_shard(tensor) else tensor


def locals_of(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return this process's parts of tensors."""
    return [local(tensor) for tensor in tensors]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor; all processes must call this for a distributed one."""
    parts: Any = tensor
    return parts.full_tensor() if is_shard(tensor) else tensor


def gathered(content: dict[str, Any], keep: bool = True) -> dict[str, Any]:
    """Return nested dicts and lists with whole tensors on the CPU; all processes must call this for distributed ones.

    One tensor at a time is whole on the device. A process that does not `keep` them gets empty tensors.
    """

    def collected(tensor: Any) -> torch.Tensor:
        full = whole(tensor.detach())
        return full.cpu() if keep else full.new_empty(0)

    return replaced(content, collected)


def replaced(content: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested dicts, lists and tuples with `change(tensor)` for each distributed tensor."""
    if isinstance(content, dict):
        new = copy.copy(content)  # with a state dict's attributes
        new.update((key, replaced(value, change)) for key, value in content.items())
        return new
    if type(content) in (list, tuple):
        return type(content)(replaced(item, change) for item in content)
    return change(content) if is_shard(content) else content


def sharded_like(tensor: torch.Tensor, shards: Any) -> torch.Tensor:
    """Return a whole `tensor`, which every process has, distributed as `shards` is; others than of its shape unchanged.

    Nothing is sent: each process keeps its part.
    """
    if not is_shard(shards) or is_shard(tensor) or tensor.shape != shards.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    on_device = tensor.to(shards.to_local().device)
    return distribute_tensor(on_device, shards.device_mesh, shards.placements, src_data_rank=None)
