"""Cost of a plan: multiply-accumulates, bit-operations and size of each layer, next to the float model's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.protocols import predictor
from lbitcls.quant.bypass import Bypassed, planned_layers, watching
from lbitcls.quant.plan import Plan, PlanRow
from lbitcls.quant.spec import FLOAT_BITS


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one image.

    Attributes:
        row: Plan row of the layer.
        macs: Multiply-accumulates; 0 for a layer that is not a convolution or matrix product.
        bit_operations: Product macs · bits of the weight · bits of the input (32 if float).
        size_bits: Size of the parameters, in bits, at their bit widths.
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
        """Size of the float layer, in bits."""
        return self.row.parameters * FLOAT_BITS


def plan_cost(plan: Plan, model: nn.Module, images: Tensor) -> list[LayerCost]:
    """Return the cost of each row of a plan.

    A layer that the forward pass bypasses becomes a row that stays float, with the reason.

    Args:
        plan: Transformer's plan for `model`.
        model: Model of the plan, before or after the transformation.
        images: Preprocessed image of shape (1, C, H, W).
    """
    macs, bypassed = _forward(model, images)
    return [_cost(_as_found(row, bypassed), macs.get(row.name, 0)) for row in plan]


def _as_found(row: PlanRow, bypassed: Bypassed) -> PlanRow:
    """Return the row, corrected by what the forward pass showed."""
    if not row.quantized or row.name not in (*bypassed.read, *bypassed.unused):
        return row
    found = "the model reads its weight itself" if row.name in bypassed.read else "the forward pass does not use it"
    return replace(row, entry=None, num_bit_w=None, num_bit_a=None, rule=f"{row.rule}, but {found}")


def count_macs(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Return the multiply-accumulates of every Conv and Linear, quantized or not, by full name, for `images`."""
    return _forward(model, images)[0]


def _forward(model: nn.Module, images: Tensor) -> tuple[dict[str, int], Bypassed]:
    macs: dict[str, int] = {}
    hooks = []

    def count(name: str, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        # A transposed convolution multiplies each input by a slice of the weight; other layers compute each output so.
        made = (*args, kwargs.get("input"))[0] if isinstance(layer, nn.ConvTranspose2d) else output
        weight: Any = layer.weight
        macs[name] = macs.get(name, 0) + made.numel() * weight[0].numel()

    layers = planned_layers(model)
    for name, module in layers.items():
        hook = module.register_forward_hook(lambda m, x, kw, y, name=name: count(name, m, x, kw, y), with_kwargs=True)
        hooks.append(hook)
    training = model.training
    try:
        with torch.no_grad(), watching(model, layers) as watch:
            predictor(model.eval())(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return macs, watch.result()


def _cost(row: PlanRow, macs: int) -> LayerCost:
    bits_w, bits_a = (b or FLOAT_BITS for b in (row.num_bit_w, row.num_bit_a))
    weights = 1
    for size in row.shape:
        weights *= size
    weights = weights if row.shape else 0
    size = weights * bits_w + (row.parameters - weights) * FLOAT_BITS
    return LayerCost(row, macs, macs * bits_w * bits_a, size)
