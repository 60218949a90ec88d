"""What a plan costs: multiply-accumulates, bit-operations and size of each layer, beside the float model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant.layers import QuantLayer, kind_of
from lbitcls.quant.plan import Plan, PlanRow
from lbitcls.quant.spec import FLOAT_BITS


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one image.

    Attributes:
        row: the layer's row of the plan.
        macs: multiply-accumulates; 0 for a layer that is no convolution or matrix product.
        bit_operations: macs · bits of the weight · bits of the input (32 where float).
        size_bits: parameters at their bits.
    """

    row: PlanRow
    macs: int
    bit_operations: int
    size_bits: int

    @property
    def float_bit_operations(self) -> int:
        """Bit-operations of the float layer."""
        return self.macs * FLOAT_BITS**2

    @property
    def float_size_bits(self) -> int:
        """Size of the float layer."""
        return self.row.parameters * FLOAT_BITS


def plan_cost(plan: Plan, model: nn.Module, images: Tensor) -> list[LayerCost]:
    """Cost of each row of a plan.

    Args:
        plan: a transformer's plan for `model`.
        model: the model that the plan is for, before or after.
        images: (1, C, H, W), an image as the model takes it.
    """
    macs = count_macs(model, images)
    return [_cost(row, macs.get(row.name, 0)) for row in plan]


def count_macs(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every Conv and Linear, quantized or not, by full name, for the images given."""
    macs: dict[str, int] = {}
    hooks = []

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # A transposed convolution multiplies each input with a slice of the weight, the others make each output so.
        made = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        weight: Any = layer.weight
        macs[name] = macs.get(name, 0) + made.numel() * weight[0].numel()

    for name, module in model.named_modules():
        if kind_of(module) is not None or isinstance(module, QuantLayer):
            hooks.append(module.register_forward_hook(lambda m, x, y, name=name: count(name, m, x, y)))
    training = model.training
    try:
        with torch.no_grad():
            getattr(model.eval(), "predict", model)(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return macs


def _cost(row: PlanRow, macs: int) -> LayerCost:
    bits_w, bits_a = (b or FLOAT_BITS for b in (row.num_bit_w, row.num_bit_a))
    weights = 1
    for size in row.shape:
        weights *= size
    weights = weights if row.shape else 0
    size = weights * bits_w + (row.parameters - weights) * FLOAT_BITS
    return LayerCost(row, macs, macs * bits_w * bits_a, size)
