"""Inputs and outputs of a unit, cached in memory, from the float model and from the model quantized so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.protocols import predictor
from lbitcls.utils.logging import get_logger

MIB = 2**20


class _Reached(Exception):
    """End of a forward pass whose rest nobody needs."""


@dataclass(frozen=True)
class Cache:
    """Tensors of a unit (N, …), over the calibration images.

    Attributes:
        quantized: Inputs from the model quantized so far.
        plain: Inputs from the float model.
        targets: Outputs of the float model.
    """

    quantized: Tensor
    plain: Tensor
    targets: Tensor

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of the quantized and the float inputs."""
        yield from zip(self.quantized.split(size), self.plain.split(size), strict=True)


@torch.no_grad()
def cache_unit(model: nn.Module, teacher: nn.Module, name: str, batches: Iterable[Tensor], max_mib: float) -> Cache:
    """Run both models up to the unit `name`, and return its inputs and float outputs.

    Args:
        model: Model whose units before this one are quantized as they will be.
        teacher: Float model with the same modules.
        name: Full name of the unit.
        batches: Images (N, C, H, W); the last ones are left out if the cache would exceed `max_mib`.
        max_mib: Memory limit in MiB; one image is kept at least.
    """
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    most, number = 0, 0
    for images in batches:
        quantized, _ = _capture(model, name, images, inputs_only=True)
        plain, target = _capture(teacher, name, images)
        assert target is not None  # requested above
        if not kept:
            size = sum(t[0].numel() * t.element_size() for t in (quantized, plain, target))
            most = max(1, int(max_mib * MIB / size))
        part = min(len(images), most - number)
        kept.append((quantized[:part], plain[:part], target[:part]))
        number += part
        if number >= most:
            get_logger().info("%s: its cache has room for %d images (max_mib=%g).", name, number, max_mib)
            break
    quantized, plain, targets = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return Cache(quantized, plain, targets)


def _capture(model: nn.Module, name: str, images: Tensor, inputs_only: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return input and output of a submodule, copied, since layers after it may work in place."""
    found: dict[str, Tensor] = {}

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found["input"] = inputs[0].detach().clone()
        if inputs_only:
            raise _Reached

    def leave(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        found["output"] = output.detach().clone()
        raise _Reached

    module = model.get_submodule(name)
    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        predictor(model)(images)
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found["input"], found.get("output")


@torch.no_grad()
def input_of(unit: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """Return the input that `layer` receives when `unit`, which contains it, receives `x`."""
    found: list[Tensor] = []

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].detach().clone())
        raise _Reached

    hook = layer.register_forward_pre_hook(enter)
    try:
        unit(x.clone())  # its first module may work in place
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]
