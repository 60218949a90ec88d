"""Fully sharded training (`parallel=dict(kind='fsdp')`): each process keeps a part of each parameter.

PyTorch's `fully_shard` (FSDP2; ZeRO-3 of Rajbhandari et al., 2020, arXiv:1910.02054) splits the parameters of a group
of modules by rows, gathers them for the group's forward and backward pass, and leaves each process the mean gradient of
its rows, which the optimizer steps. What is not split is the same on all processes:

- parameters of quantizers, and those of shape (), which have no rows: their gradients are averaged after the backward
  pass (`OptimizerStep`)
- buffers. In training a BatchNorm's running statistics differ until they are next taken from the first process; ranges
  that quantizers observe are taken from it before each forward pass. DDP does both.

Each group is sharded again after its forward pass, the outermost as well, so that between two steps `parameters()` are
the optimizer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lbitcls.core.optimizer_pair import OptimizerPair
from lbitcls.quant.calibration import named_quantizers, quantizer_parameters
from lbitcls.quant.quantizer import Quantizer
from lbitcls.utils.errors import ConfigError, suggest
from lbitcls.utils.shards import sharded_like

_SEQUENCES = (nn.Sequential, nn.ModuleList)


def shard_model(model: nn.Module, wrap: Sequence[str] | None, device: torch.device) -> list[nn.Parameter]:
    """Distribute the parameters of `model` over all processes, in place.

    Args:
        model: Classifier, equal on all processes; it may be on the CPU, from where each group moves to the device.
        wrap: Classes or full names of the modules that are gathered one after the other; None: see `blocks`. What is
            in none of them is one more group.
        device: Device to train on.

    Returns:
        Parameters that are not distributed.

    Raises:
        ConfigError: A name in `wrap` matches nothing, or a module of that name cannot be gathered alone.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    whole_ones = _undivided(model)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    groups = blocks(model) if wrap is None else find_modules(model, wrap)
    for name in [*reversed(groups), ""]:  # inner ones first
        module: Any = model.get_submodule(name)
        try:
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole_ones))
        except (ValueError, NotImplementedError, TypeError) as error:
            raise ConfigError(f"parallel.wrap: '{name}' ({type(module).__name__}) cannot be sharded: {error}") from None
        if dist.get_backend() != "nccl":
            module.set_force_sum_reduction_for_comms(True)  # others have no mean
    model.to(device)  # what is not distributed
    if hasattr(model, "predict"):
        owner: Any = model
        owner.predict = _without_views(owner.predict)
        register_fsdp_forward_method(model, "predict")  # validation and students call it
    model.register_load_state_dict_pre_hook(_distribute)
    return whole_ones


def _without_views(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return `method` with a copy of a result that is a view: FSDP hooks the result, and loses hooks of views."""

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        result = method(*args, **kwargs)
        return result.clone() if result._is_view() else result

    return call


def _undivided(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that each process keeps whole."""
    chosen = [*quantizer_parameters(model), *(p for p in model.parameters() if p.dim() == 0)]
    return list(dict.fromkeys(chosen))


def _distribute(module: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Replace whole tensors, which every process is loading, by this process's parts."""
    for name, parameter in module.named_parameters(prefix.removesuffix(".")):
        if name in state_dict:
            state_dict[name] = sharded_like(state_dict[name], parameter)


def blocks(model: nn.Module) -> list[str]:
    """Return the names of the backbone's blocks: the items with parameters of its outermost sequences.

    Example:
        >>> body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
        >>> blocks(nn.ModuleDict({"backbone": nn.ModuleDict({"stage": body})}))
        ['backbone.stage.0', 'backbone.stage.2']
    """
    backbone = dict(model.named_children()).get("backbone")
    return [] if backbone is None else list(_items(backbone, "backbone"))


def _items(module: nn.Module, name: str) -> Iterator[str]:
    for key, child in module.named_children():
        full = f"{name}.{key}"
        if not isinstance(module, _SEQUENCES):
            yield from _items(child, full)
        elif next(child.parameters(), None) is not None:
            yield full


def find_modules(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the full names of the modules with the full names or classes in `names`, outer ones first.

    A class includes those derived from it: `Conv2d` finds quantized convolutions too.

    Raises:
        ConfigError: A name matches nothing.
    """
    known = {name: {name, *_classes(module)} for name, module in model.named_modules() if name}
    every = set().union(*known.values())
    for wanted in names:
        if wanted not in every:
            raise ConfigError(
                f"parallel.wrap: the model has no module, nor a class of modules, '{wanted}'{suggest(wanted, every)}"
            )
    return [name for name, own in known.items() if own & set(names)]


def _classes(module: nn.Module) -> list[str]:
    return [kind.__name__ for kind in type(module).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]


def share_observed_ranges(called: nn.Module, model: nn.Module) -> None:
    """Give the quantizers of all processes the first one's observed ranges before each training call of `called`."""
    observers = [q for _, q in named_quantizers(model) if type(q).observe is not Quantizer.observe]
    ranges = [b for quantizer in observers for b in quantizer.buffers() if b.is_floating_point()]

    def share(module: nn.Module, *unused: Any) -> None:
        if module.training:
            _broadcast_together(ranges)

    if ranges:
        called.register_forward_pre_hook(share)


@torch.no_grad()
def _broadcast_together(tensors: Sequence[torch.Tensor]) -> None:
    """Copy the first process's values of float tensors to every process, by one message."""
    message = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    dist.broadcast(message, src=0)
    parts = message.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def shard_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Let `optimizer` load states of whole tensors, of which each process keeps its parts."""

    def distribute(own: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in own.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        by_number = dict(zip(numbers, parameters))
        return {**state, "state": {n: _parts(values, by_number.get(n)) for n, values in state["state"].items()}}

    for part in optimizer.parts.values() if isinstance(optimizer, OptimizerPair) else [optimizer]:
        part.register_load_state_dict_pre_hook(distribute)


def _parts(values: dict[str, Any], parameter: nn.Parameter | None) -> dict[str, Any]:
    return {k: sharded_like(v, parameter) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
