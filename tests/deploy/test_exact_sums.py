"""Integer layers whose sums are exact: every order of the additions gives the same logits, and training's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from lbitcls.deploy import export_model
from lbitcls.deploy.passes.exact_sums import sum_exactly
from lbitcls.deploy.passes.graph import Graph, operation_of, weights_of
from lbitcls.deploy.runtime.metadata import read_onnx


def run(content: bytes, images: np.ndarray, optimized: bool) -> np.ndarray:
    """Return ONNX Runtime's logits; its optimizations change kernels, and so the order of additions."""
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


METHODS = [("LSQ", 8), ("LSQPlus", 4)]
MORE_METHODS = [pytest.param(*more, marks=pytest.mark.slow) for more in (("DoReFa", 4), ("DSQ", 2), ("PACT", 4))]


@pytest.mark.parametrize(("method", "bits"), [*METHODS, *MORE_METHODS])
def test_sums_are_exact(method: str, bits: int, make_resnet: Any, digits: Tensor, tmp_path: Path) -> None:
    model = make_resnet(method, bits)
    images = digits[:100].numpy()
    export_model(model, tmp_path / "model.onnx", input_shape=(1, 8, 8))
    graph = Graph(read_onnx(tmp_path / "model.onnx"))
    before = graph.model.SerializeToString()
    sum_exactly(graph)
    exact = graph.save().SerializeToString()
    assert np.array_equal(run(exact, images, True), run(exact, images, False))
    for weight in weights_of(graph):
        scale, operation = graph.array(weight.input[1]), operation_of(graph, weight)
        assert operation is not None and scale is not None and (scale == 1).all()
        following = graph.only_consumer(operation.output[0])
        assert following is not None and following.op_type == "Mul"
    with torch.no_grad():
        trained = model.predict(digits[:100]).numpy()
    gap, old = (np.abs(run(content, images, True) - trained).mean() for content in (exact, before))
    assert gap < max(2 * old, 0.02 * trained.std())


def test_a_value_that_other_nodes_use_keeps_its_scale_for_them(digits: Tensor) -> None:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("QuantizeLinear", ["image", "step", "zero"], ["codes"], name="q"),
        helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["values"], name="d"),
        helper.make_node("DequantizeLinear", ["w", "steps", "zeros"], ["weight"], name="w", axis=0),
        helper.make_node("Conv", ["values", "weight"], ["sum"], name="conv"),
        helper.make_node("Add", ["sum", "values"], ["logits"], name="add"),
    ]
    constants = [
        helper.make_tensor("step", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [3]),
        helper.make_tensor("w", TensorProto.INT8, [1, 1, 1, 1], [5]),
        helper.make_tensor("steps", TensorProto.FLOAT, [1], [0.3]),
        helper.make_tensor("zeros", TensorProto.INT8, [1], [0]),
    ]
    kind = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 1, 8, 8]) for n in ("image", "logits")]
    model = helper.make_model(
        helper.make_graph(nodes, "small", kind[:1], kind[1:], constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    expected = run(model.SerializeToString(), digits[:4].numpy(), False)
    graph = Graph(model)
    sum_exactly(graph)
    assert [node.op_type for node in graph.nodes].count("DequantizeLinear") == 3
    np.testing.assert_allclose(run(graph.save().SerializeToString(), digits[:4].numpy(), False), expected, atol=1e-6)
