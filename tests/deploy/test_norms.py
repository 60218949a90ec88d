"""BatchNorm is folded into integer layers exactly, whatever constant is added before it, along any axis."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.passes.norms import absorb_norms

C = 4
"""Channels, features, tokens, rows and columns alike, so that no size tells one axis from another."""
LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = {
    "conv": ("Conv", (2, C, C, C), (C, C, 1, 1), 0, {}),
    "depthwise": ("Conv", (2, C, C, C), (C, 1, 3, 3), 0, dict(group=C, pads=[1, 1, 1, 1])),
    "line": ("Conv", (2, C, C), (C, C, 1), 0, {}),
    "volume": ("Conv", (2, C, C, C, C), (C, C, 1, 1, 1), 0, {}),
    "transposed": ("ConvTranspose", (2, C, C, C), (C, C, 1, 1), 1, {}),
    "transposed_groups": ("ConvTranspose", (2, C, C, C), (C, C // 2, 1, 1), 1, dict(group=2)),
    "gemm": ("Gemm", (C, C), (C, C), 0, dict(transB=1)),
    "gemm_plain": ("Gemm", (C, C), (C, C), 1, dict(alpha=0.5)),
    "gemm_transposed_input": ("Gemm", (C, C), (C, C), 0, dict(transA=1, transB=1)),
    "tokens": ("MatMul", (2, C, C), (C, C), 1, {}),
    "one_channel": ("Conv", (2, C, C, C), (1, C, 1, 1), 0, {}),
    "one_pixel": ("Conv", (2, C, 1, 1), (C, C, 1, 1), 0, {}),
}
"""Operation, shapes of input and weight, the axis of the weight's scales, attributes."""
REFUSED = ("transposed_groups", "tokens")


def layer_and_norm(layer: str, shape: tuple[int, ...] | None, swapped: bool = False, **norm: Any) -> onnx.ModelProto:
    """Return a layer with integer weights, an addition to its result (None: no addition), and a BatchNormalization."""
    kind, image, weight, axis, options = LAYERS[layer]
    draw = np.random.default_rng(0)
    constants = dict(
        codes=draw.integers(-7, 8, weight).astype(np.int8),
        scale=draw.uniform(0.1, 0.2, weight[axis]).astype(np.float32),
        zero=np.zeros(weight[axis], np.int8),
        added=draw.normal(0, 3, shape or ()).astype(np.float32),
        **{name: draw.normal(size=C).astype(np.float32) for name in ("gamma", "beta", "mean")},
        variance=draw.uniform(0.5, 2, C).astype(np.float32),
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["weight"], axis=axis, name="weight"),
        helper.make_node(kind, ["image", "weight"], ["result"], name=layer, **options),
    ]
    if shape is not None:
        nodes.append(helper.make_node("Add", ["added", "result"] if swapped else ["result", "added"], ["sum"]))
    inputs = ["result" if shape is None else "sum", "gamma", "beta", "mean", "variance"]
    nodes.append(helper.make_node("BatchNormalization", inputs, ["y"], name="norm", **norm))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def results(model: onnx.ModelProto, layer: str) -> np.ndarray:
    image = np.random.default_rng(1).normal(size=LAYERS[layer][1]).astype(np.float32)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": image})[0]


def shapes_of(layer: str) -> list[tuple[int, ...] | None]:
    """Return None and all shapes of ones and Cs that can be added to the layer's result before a BatchNorm of C."""
    rank = len(LAYERS[layer][1])
    known: list[tuple[int, ...] | None] = [None]
    for length in range(rank + 1):
        for sizes in product((1, C), repeat=length):
            batch, channels, *_ = ((1,) * rank + sizes)[-rank:]
            if batch == 1 and (layer != "one_channel" or channels == C):
                known.append(sizes)
    return known if layer != "one_channel" else known[1:]


@pytest.mark.parametrize("layer", LAYERS)
def test_constants_of_every_shape(layer: str) -> None:
    for shape, swapped in product(shapes_of(layer), (False, True)):
        model = layer_and_norm(layer, shape, swapped)
        expected, graph = results(model, layer), Graph(model)
        left = absorb_norms(graph)
        given = results(graph.save(), layer)
        assert left == (["norm"] if layer in (*REFUSED, "one_channel") else []), shape
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5, err_msg=str(shape))


def test_a_channels_constant_becomes_a_bias() -> None:
    for shape in (None, (), (C, 1, 1), (1, C, 1, 1)):
        graph = Graph(layer_and_norm("conv", shape))
        assert absorb_norms(graph) == []
        (add,) = [node for node in graph.nodes if node.op_type == "Add"]
        bias = graph.array(add.input[1])
        assert bias is not None and bias.shape == (C, 1, 1)


def test_norms_whose_values_are_not_known() -> None:
    model = layer_and_norm("conv", None)
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == "gamma"))
    model.graph.input.append(helper.make_tensor_value_info("gamma", TensorProto.FLOAT, [C]))
    assert absorb_norms(Graph(model)) == ["norm"]
    assert absorb_norms(Graph(layer_and_norm("conv", None, training_mode=1))) == ["norm"]


def test_what_else_is_taken_of_a_result_stays() -> None:
    """A result that is also used elsewhere, is an output, or is added to itself."""
    model = layer_and_norm("conv", (C, 1, 1))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, None))
    assert absorb_norms(Graph(model)) == ["norm"]
    model = layer_and_norm("conv", (C, 1, 1))
    next(node for node in model.graph.node if node.op_type == "Add").input[:] = ["result", "result"]
    assert absorb_norms(Graph(model)) == ["norm"]
