"""Packed weights of 4 bits or fewer, two per byte: an INT4 initializer and a Cast to INT8 before DequantizeLinear.

Engines compute the Cast once, when they load the file, and run the same integer kernels as on an INT8 initializer.
DequantizeLinear on INT4 itself, the shorter form, makes OpenVINO compute the layer in float and ONNX Runtime slow.

A channel that contains 8, because a negative γ changed the sign of a -8, is stored with its old signs and a negative
scale, which both engines compute exactly (TensorRT does not support it).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import Graph, attributes, operation_of, weights_of
from lbitcls.deploy.runtime.metadata import require

if TYPE_CHECKING:
    from onnx import NodeProto

LOWEST, HIGHEST = -8, 7


def pack_weights(graph: Graph, layers: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Store the integer weights of the `layers` in 4 bits, if all of a layer's integers fit.

    Returns:
        Names of the packed layers, and of the others with the reason. A layer that is called twice, with a different
        BatchNorm after each call, has integers for each call; it is packed if all of them fit.
    """
    packed: dict[str, None] = {}
    left: dict[str, str] = {}
    for weight in weights_of(graph):
        layer = weight.name.rpartition("/")[0]
        if operation_of(graph, weight) is None or layer not in layers:
            continue
        codes = _within(graph, weight)
        if codes.min() < LOWEST or codes.max() > HIGHEST:
            span = f"{codes.min()} to {codes.max()}"
            left[layer] = f"its integers are {span}; 4 bits hold {LOWEST} to {HIGHEST}"
            continue
        _pack(graph, weight.input[0], codes, weight)
        packed[layer] = None
    return [layer for layer in packed if layer not in left], left


def _within(graph: Graph, weight: NodeProto) -> np.ndarray:
    """Return the integers of a weight, with a channel's signs changed back if they fit only then."""
    codes, scale = graph.array(weight.input[0]), graph.array(weight.input[1])
    assert codes is not None and scale is not None
    axis = attributes(weight).get("axis", 1)
    others = tuple(i for i in range(codes.ndim) if i != axis)
    changed = (codes.max(others) == HIGHEST + 1) & (codes.min(others) > LOWEST)
    sign = np.where(changed, -1, 1).astype(codes.dtype)
    signed = codes * np.expand_dims(sign, others)
    if not changed.any() or signed.min() < LOWEST or signed.max() > HIGHEST:
        return codes
    weight.input[1] = graph.add_constant(weight.input[1], scale * sign, replace=True)
    return signed


def _pack(graph: Graph, name: str, codes: np.ndarray, weight: NodeProto) -> None:
    onnx = require("onnx")
    store = graph.free_name(f"{name}_int4")
    data = pack_int4(codes)
    graph.constants[store] = onnx.TensorProto(
        name=store, data_type=onnx.TensorProto.INT4, dims=codes.shape, raw_data=data.tobytes()
    )
    output = graph.free_name(f"{name}_int8")
    graph.redirect(name, output)
    graph.add_node("Cast", [store], output, None, f"{weight.name.rpartition('/')[0]}/Cast", to=onnx.TensorProto.INT8)


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Pack integers from -8 to 7, two per byte, the first in the lower half; uint8 (ceil(n / 2),).

    Example:
        >>> pack_int4(np.array([1, -1, 7])).tolist()
        [241, 7]
    """
    nibbles = (codes.reshape(-1).astype(np.int8) & 0x0F).astype(np.uint8)
    nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return nibbles[0::2] | (nibbles[1::2] << 4)
