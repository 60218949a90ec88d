"""Skip connections in 8 bits, in training: `QuantAdd` fake quantizes both operands of a block's addition.

    own  = FQ(last layer's result)          a grid of its own
    skip = FQ(block's input)                for all layers of the block that read it, not for the addition alone; with
                                            an 8-bit layer that reads it, the grid of that layer's input
           FQ(downsample(block's input))    a grid of its own, if the block has such a layer
    sum  = own + skip

Layers that read a block's input share its grid, since on two grids it is stored twice, in more than 8 bits.

An engine for integers stores what it adds from memory in 8 bits, and the sum with it, if the other operand is on a grid
too (`lbitcls.deploy.passes.guards.guard_sums`). So these roundings are part of training, with scales that learn as all
others do: LSQ (arXiv:1902.08153), one grid per tensor, signed if the data has negative values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from lbitcls.protocols import Addition
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.utils.errors import ConfigError

RESIDUAL_BITS = 8
"""Bits of a skip connection that is not float."""


class QuantAdd(nn.Module):
    """Addition whose operands are fake quantized (`lbitcls.protocols.Addition`).

    Args:
        addition: Float addition of the block.
        own: Quantizer of the block's own result.
        skip: Quantizer of the skip connection; of the block's input if that is the skip connection.
    """

    own_quantizer: nn.Module
    skip_quantizer: nn.Module

    def __init__(self, addition: Addition, own: Quantizer, skip: Quantizer) -> None:
        super().__init__()
        self.readers = addition.readers
        self.of_input = addition.of_input
        self.own_quantizer = own
        self.skip_quantizer = skip

    def enter(self, x: Tensor) -> Tensor:
        """Return the block's input as all its layers and the addition receive it."""
        return _quantized(self.skip_quantizer, x) if self.of_input else x

    def forward(self, own: Tensor, skip: Tensor) -> Tensor:
        """Add two tensors of the same shape, each on its grid."""
        if not self.of_input:
            skip = _quantized(self.skip_quantizer, skip)
        return _quantized(self.own_quantizer, own) + skip

    def quantizers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the names and quantizers of the operands."""
        yield "own_quantizer", self.own_quantizer
        yield "skip_quantizer", self.skip_quantizer


def _quantized(quantizer: nn.Module, x: Tensor) -> Tensor:
    y = quantizer(x)
    if isinstance(quantizer, Quantizer):
        quantizer.take_recipe()  # which layers use to recompute y instead of keeping it
    return y


def quantized_additions(model: nn.Module) -> Iterator[tuple[str, QuantAdd]]:
    """Yield the name and module of each quantized addition."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantAdd))


def trained_residual_bits(model: nn.Module) -> int | None:
    """Return the bits that a model's skip connections have in training; None if they are float."""
    return RESIDUAL_BITS if any(quantized_additions(model)) else None


def find_additions(model: nn.Module, excluded: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names of the float additions in a model's blocks, without those in `excluded`.

    Raises:
        ConfigError: There are none.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, Addition)]
    chosen = tuple(name for name in found if name not in excluded)
    if not chosen:
        raise ConfigError(
            f"residual_bits: {type(model).__name__} has no additions that can be quantized in training. The blocks of "
            "ResNet, ResNet_CIFAR, ResNetCIFAROptionA and B, MobileNetV2 and the same blocks of TorchvisionBackbone "
            "have them. For another network leave residual_bits out, and try lbitcls export --residual-bits 8."
        )
    return chosen


def quantize_additions(model: nn.Module, names: Iterable[str]) -> None:
    """Replace float additions, in place, after the model's layers were quantized."""
    for name in names:
        block = model.get_submodule(name.rpartition(".")[0])
        addition: Any = model.get_submodule(name)
        new = QuantAdd(addition, LSQ(RESIDUAL_BITS, role="input"), _skip_quantizer(block, addition))
        like = next(block.parameters(), None)
        new.train(block.training).to(None if like is None else like.device)
        setattr(block, name.rpartition(".")[2], new)
        _share_grid([block.get_submodule(reader) for reader in addition.readers])


def _share_grid(layers: Sequence[nn.Module]) -> None:
    """Give layers that read the same tensor one input quantizer, if theirs are of one kind."""
    readers = [m for m in layers if isinstance(m, QuantLayer) and m.input_quantizer is not None]
    for layer in readers[1:]:
        first, own = readers[0].input_quantizer, layer.input_quantizer
        if first is not None and own is not None and first.grid_facts() == own.grid_facts():
            layer.input_quantizer = first


def _skip_quantizer(block: nn.Module, addition: Addition) -> Quantizer:
    """Return the quantizer of the layer that reads the skip connection, if it fits; otherwise a new one."""
    layer = block.get_submodule(addition.readers[0]) if addition.of_input and addition.readers else None
    shared = layer.input_quantizer if isinstance(layer, QuantLayer) else None
    return shared if shared is not None and _fits(shared) else LSQ(RESIDUAL_BITS, role="input")


def _fits(quantizer: Quantizer) -> bool:
    """Return True if a quantizer has 8-bit integers at even distances, and a range that follows the data."""
    even = quantizer.levels() is None and quantizer.thresholds() is None
    follows = any(True for _ in quantizer.parameters()) or type(quantizer).observe is not Quantizer.observe
    return quantizer.num_bits == quantizer.final_bits == RESIDUAL_BITS and even and follows
