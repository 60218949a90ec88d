"""Converts a graph with QuantizeLinear and DequantizeLinear to QONNX, whose `Quant` nodes state the true bit width.

    Quant(x, scale, zeropt, bitwidth; signed, narrow)  =  (round(clip(x / scale + zeropt, low, high)) - zeropt) · scale

    bounds of b bits        low             high
    unsigned                0               2^b - 1
    signed                  -2^(b-1)        2^(b-1) - 1
    signed, narrow          1 - 2^(b-1)     2^(b-1) - 1

QONNX (arXiv:2206.07527, https://github.com/fastmachinelearning/qonnx) has float tensors throughout, and no containers:
a grid of 16 levels is 4 bits. What the compilers that read it, FINN and hls4ml, expect is written where it changes no
value: weights as a constant before a Quant, with one scale per output channel; MatMul instead of Gemm; a bias as an
Add; no zero point where the grid can do without; a Relu in front of each unsigned Quant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import Graph, attributes, known_array, operation_of, sign_outside, weights_of
from lbitcls.deploy.runtime.engines.qonnx import DOMAIN, VERSION
from lbitcls.deploy.runtime.metadata import require

if TYPE_CHECKING:
    from onnx import NodeProto


@dataclass(frozen=True)
class QuantGrid:
    """QuantGrid of a Quant node.

    Attributes:
        bits: Bit width.
        signed: True if there are negative integers.
        narrow: True if the lowest integer of a signed grid is left out.
        zero_point: Integer that represents 0.
        exact: True if the Quant's bounds are those of the quantized values; False: a Clip must stay before it.
    """

    bits: int
    signed: bool
    narrow: bool = False
    zero_point: int = 0
    exact: bool = True


def grid_of(low: int, high: int, zero_point: int) -> QuantGrid:
    """Return the narrowest grid that holds the integers `low` to `high`, of which `zero_point` represents 0.

    Integers and zero point may be shifted together, since only their difference counts. A grid without a zero point is
    preferred among those of equal bits, an exact one first.

    Example:
        >>> grid_of(-7, 7, 0), grid_of(0, 15, 3).zero_point, grid_of(0, 250, 0).exact
        (QuantGrid(bits=4, signed=True, narrow=True, zero_point=0, exact=True), 3, False)
    """
    bits = max(1, (high - low).bit_length())
    top, levels = 2 ** (bits - 1) - 1, high - low + 1
    below, above = low - zero_point, high - zero_point
    if below >= 0:
        bits = max(1, above.bit_length())
        return QuantGrid(bits, False, exact=(below, above) == (0, 2**bits - 1))
    if bits > 1 and -top <= below and above <= top:
        return QuantGrid(bits, True, narrow=True, exact=(below, above) == (-top, top))
    if -top - 1 <= below and above <= top:
        return QuantGrid(bits, True, exact=(below, above) == (-top - 1, top))
    if bits > 1 and levels == 2**bits - 1:
        return QuantGrid(bits, True, narrow=True, zero_point=zero_point - low - top)
    return QuantGrid(bits, False, zero_point=zero_point - low, exact=levels == 2**bits)


def weight_grid(codes: np.ndarray, bits: int | None) -> QuantGrid:
    """Return the signed grid of a weight's integers: of the trained `bits`, or of as many as the integers need."""
    low, high = int(codes.min()), int(codes.max())
    needed = max(high, -low - 1, 1).bit_length() + 1
    bits = max(needed, bits or 0)
    return QuantGrid(bits, True, narrow=low > -(2 ** (bits - 1)))


def quantization_faults(graph: Graph) -> list[str]:
    """Return what no Quant node can express, with the nodes' names and what to do; empty if there is nothing."""
    found = []
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if any(name not in graph.constants for name in node.input[1:]):
            found.append(f"{node.name} has a scale or zero point that is computed from the image; make it a constant")
        source = graph.producer(node.input[0])
        if node.op_type == "QuantizeLinear" and (scale := graph.array(node.input[1])) is not None and scale.size != 1:
            found.append(f"{node.name} has several scales; quantize the tensor with one")
        if node.op_type == "DequantizeLinear" and node.input[0] not in graph.constants and not _same(source, node):
            found.append(f"{node.name} dequantizes other integers than those of a QuantizeLinear on the same grid")
        if node.op_type == "QuantizeLinear" and (
            node.output[0] in graph.outputs
            or any(user.op_type != "DequantizeLinear" for user in graph.consumers(node.output[0]))
        ):
            found.append(f"{node.name} has its integers used by other operations than DequantizeLinear")
    return found


def _same(source: NodeProto | None, dequantize: NodeProto) -> bool:
    return (
        source is not None
        and source.op_type == "QuantizeLinear"
        and list(source.input[1:]) == list(dequantize.input[1:])
    )


def to_quant_nodes(graph: Graph, weight_bits: Mapping[str, int | None]) -> None:
    """Convert all quantizations of a graph without `quantization_faults` to Quant nodes, in place.

    Args:
        graph: Finished graph of integer layers.
        weight_bits: Trained bits of each layer's weight, by the layer's name.
    """
    for weight in weights_of(graph):
        bits = weight_bits.get(weight.name.rpartition("/")[0])
        if bits is not None:
            _keep_signs(graph, weight, bits)
        _lay_out(graph, weight)
        _weight_to_quant(graph, weight, bits)
    for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        _input_to_quant(graph, node)
    imports = graph.model.opset_import
    if not any(imported.domain == DOMAIN for imported in imports):
        imports.add(domain=DOMAIN, version=VERSION)


def _keep_signs(graph: Graph, weight: NodeProto, bits: int) -> None:
    """Move a channel's sign outside of the weight if a negative γ made its lowest integer one that `bits` lack.

    -8 becomes 8, which 4 bits do not hold, while all others of the layer lie within -8..8.
    """
    codes, axis = known_array(graph, weight.input[0]), attributes(weight).get("axis", 1)
    limit = 2 ** (bits - 1)
    if codes.ndim < 2 or operation_of(graph, weight) is None or codes.max() != limit or codes.min() < -limit:
        return
    others = tuple(i for i in range(codes.ndim) if i != axis)
    changed = (codes.max(others) == limit) & (codes.min(others) > -limit)
    sign = np.expand_dims(np.where(changed, -1, 1), others)
    signed = codes.astype(np.int32) * sign
    if signed.max() < limit:
        weight.input[0] = graph.add_constant(weight.input[0], signed.astype(codes.dtype), replace=True)
        sign_outside(graph, weight, changed)


def _lay_out(graph: Graph, weight: NodeProto) -> None:
    """Store a linear layer's weight as (I, O), as MatMul reads it: without a Transpose after it or a Gemm."""
    operation, user = operation_of(graph, weight), graph.only_consumer(weight.output[0])
    if operation is None or operation.op_type not in ("Gemm", "MatMul"):
        return
    transposed = False
    if user is not None and user.op_type == "Transpose":
        if known_array(graph, weight.input[0]).ndim != 2:
            return
        operation.input[1], transposed = weight.output[0], True
    known = attributes(operation)
    if operation.op_type == "Gemm" and _is_product(operation):
        transposed ^= bool(known.get("transB", 0))
        operation.op_type = "MatMul"
        del operation.attribute[:]
        del operation.input[2:]
    if transposed:
        codes = known_array(graph, weight.input[0])
        weight.input[0] = graph.add_constant(weight.input[0], codes.T, replace=True)
        axis = attributes(weight).get("axis", 1)
        del weight.attribute[:]
        weight.attribute.append(require("onnx").helper.make_attribute("axis", 1 - axis))


def _is_product(gemm: NodeProto) -> bool:
    """Return True if a Gemm computes x · w or x · wᵀ and nothing else."""
    known = attributes(gemm)
    scaled = known.get("alpha", 1.0) != 1.0 or known.get("transA", 0)
    return not scaled and not any(gemm.input[2:])


def _weight_to_quant(graph: Graph, weight: NodeProto, bits: int | None) -> None:
    codes, scale = known_array(graph, weight.input[0]), known_array(graph, weight.input[1])
    zero = known_array(graph, weight.input[2]) if len(weight.input) > 2 else np.zeros(())
    shape = [1] * codes.ndim
    if scale.ndim:
        shape[attributes(weight).get("axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.ndim else zero
    codes = codes.astype(np.int32) - zero.astype(np.int32)
    values = (codes * scale).astype(np.float32)  # codes below 2^24, so this is what DequantizeLinear returns
    source = graph.add_constant(f"{weight.name.rpartition('/')[0]}.weight", values)
    inputs = [source, graph.add_constant(f"{source}_scale", scale)]
    _replace(graph, weight, weight.output[0], inputs, weight_grid(codes, bits))


def _input_to_quant(graph: Graph, node: NodeProto) -> None:
    """Replace a QuantizeLinear, its DequantizeLinears, and a Clip that only narrows the grid."""
    scale, zero = known_array(graph, node.input[1]), known_array(graph, node.input[2])
    clip = graph.producer(node.input[0])
    clip = clip if clip is not None and clip.op_type == "Clip" else None
    grid = grid_of(*_range(graph, clip, scale, zero), int(zero))
    bounded = clip is not None and all(name in graph.constants for name in clip.input[1:] if name)
    source = clip.input[0] if clip is not None and bounded and grid.exact else node.input[0]
    before = graph.producer(source)
    if not grid.signed and grid.zero_point == 0 and (before is None or before.op_type != "Relu"):
        positive = graph.free_name(f"{node.name.rpartition('/')[0]}_positive")
        graph.add_node("Relu", [source], positive, _before(graph, node), f"{node.name.rpartition('/')[0]}/Relu")
        source = positive
    first, *others = graph.consumers(node.output[0])
    for other in others:
        graph.redirect(other.output[0], first.output[0])
        graph.nodes.remove(other)
    graph.nodes.remove(first)
    _replace(graph, node, first.output[0], [source, node.input[1]], grid)


def _before(graph: Graph, node: NodeProto) -> NodeProto | None:
    """Return the node in front of `node` in the graph's order."""
    place = graph.nodes.index(node)
    return graph.nodes[place - 1] if place else None


def _range(graph: Graph, clip: NodeProto | None, scale: np.ndarray, zero: np.ndarray) -> tuple[int, int]:
    """Return the lowest and highest integer that a quantization can return: its container's, or those of a Clip.

    A Clip, the grid's own or the model's (ReLU6), bounds what is rounded, and rounding keeps the order.
    """
    limits = np.iinfo(zero.dtype)
    ends = [limits.min, limits.max]
    for place, name in enumerate(clip.input[1:3] if clip is not None else ()):
        bound = graph.array(name)
        if bound is not None:
            steps = np.rint(np.float32(bound) / np.float32(scale)) + float(zero)
            ends[place] = int(np.clip(steps, limits.min, limits.max))
    return min(ends), ends[1]


def _replace(graph: Graph, node: NodeProto, output: str, inputs: list[str], grid: QuantGrid) -> None:
    """Replace `node` by a Quant with the given output, input and scale."""
    for name, value in (("zero_point", grid.zero_point), ("bits", grid.bits)):
        constant = f"qonnx.{name}_{value}".replace("-", "minus_")
        inputs.append(
            constant if constant in graph.constants else graph.add_constant(constant, np.array(value, np.float32))
        )
    place, name = graph.nodes.index(node), f"{node.name.rpartition('/')[0]}/Quant"
    given = dict(domain=DOMAIN, signed=int(grid.signed), narrow=int(grid.narrow), rounding_mode="ROUND")
    graph.add_node("Quant", inputs, output, node, name, **given)
    del graph.nodes[place]
