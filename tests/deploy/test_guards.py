"""Guards against OpenVINO's wrong results on small graphs; each is needed, because without it the results differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.passes.guards import guard_integers, guard_pointwise
from lbitcls.deploy.passes.windows import fit_windows
from lbitcls.deploy.runtime.engines.openvino import ONE_THREAD, openvino_core
from lbitcls.deploy.targets.cpu import CPU

make = onnx.helper.make_node
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(4, 4, 6, 6)).astype(np.float32)
CONSTANTS = dict(
    step=np.float32(0.0315),
    zero=np.int8(0),
    codes=RANDOM.integers(-100, 100, (4, 4, 1, 1)).astype(np.int8),
    scales=np.full(4, 0.01, np.float32),
    zeros=np.zeros(4, np.int8),
    bias=np.float32(RANDOM.normal(size=(4, 1, 1))),
    low=np.float32(-1),
    high=np.float32(1),
    shape=np.array([0, 4, -1]),
)
INTEGERS = (
    make("QuantizeLinear", ["x", "step", "zero"], ["q"], name="quantize"),
    make("DequantizeLinear", ["q", "step", "zero"], ["a"], name="dequantize"),
)


def graph_of(*nodes: Any) -> Graph:
    value = onnx.helper.make_tensor_value_info
    ends = value("x", onnx.TensorProto.FLOAT, ["N", 4, 6, 6]), value("y", onnx.TensorProto.FLOAT, None)
    used = {name: v for name, v in CONSTANTS.items() if any(name in node.input for node in nodes)}
    constants = [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in used.items()]
    graph = onnx.helper.make_graph(list(nodes), "g", ends[:1], ends[1:], constants)
    return Graph(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))


def difference(graph: Graph) -> float:
    """Return the largest difference of OpenVINO from ONNX Runtime without optimizations; inf if the shapes differ."""
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

    file, options = graph.save().SerializeToString(), SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, {"x": IMAGES})[0]
    core = openvino_core()
    (given,) = core.compile_model(core.read_model(file), "CPU", ONE_THREAD)([IMAGES]).values()
    return float(np.abs(given - expected).max()) if given.shape == expected.shape else np.inf


def check_needed(build: Callable[[], Graph], guard: Callable[[Graph], None]) -> None:
    """Check that a guard mends a graph, that the target applies it, and that OpenVINO is wrong without it."""
    plain, guarded, shaped = build(), build(), build()
    guard(guarded)
    CPU().shape(shaped)
    assert difference(guarded) < 1e-5
    assert difference(shaped) < 1e-5
    assert difference(plain) > 1e-3  # if this fails, OpenVINO computes the graph correctly, and the guard can go


@pytest.mark.parametrize("between", ["MaxPool", "Relu", "Transpose", "Concat", "Reshape", None])
def test_a_clip_of_integers_keeps_its_bounds(between: str | None) -> None:
    options: dict[str | None, dict[str, Any]] = {"MaxPool": {"kernel_shape": [2, 2]}, "Concat": {"axis": 1}}
    inputs = {"Concat": ["a", "a"], "Reshape": ["a", "shape"]}.get(str(between), ["a"])
    nodes = [make(between, inputs, ["b"], name="between", **options.get(between, {}))] if between else []
    nodes.append(make("Clip", ["b" if between else "a", "low", "high"], ["y"], name="clip"))
    check_needed(lambda: graph_of(*INTEGERS, *nodes), guard_integers)


def test_a_clip_beside_another_reader_of_the_integers() -> None:
    """A block's 8-bit input, which the block adds to its result, has a coarser grid than its first layer clips to."""
    clip, add = make("Clip", ["a", "low", "high"], ["b"], name="clip"), make("Add", ["a", "b"], ["y"], name="add")
    graph = graph_of(*INTEGERS, clip, add)
    guard_integers(graph)
    (guard,) = [node for node in graph.nodes if node.op_type == "LeakyRelu"]
    users = graph.consumers(guard.output[0]), graph.consumers("a")
    assert [[node.name for node in found] for found in users] == [["clip"], [guard.name, "add"]]
    assert difference(graph) < 1e-5


def test_an_average_of_integers_is_not_rounded() -> None:
    pool = make("AveragePool", ["a"], ["b"], name="pool", kernel_shape=[2, 2])
    check_needed(lambda: graph_of(*INTEGERS, pool, make("Add", ["b", "bias"], ["y"], name="add")), guard_integers)


@pytest.mark.parametrize("order", [[0, 1, 3, 2], [0, 3, 2, 1]])
@pytest.mark.parametrize("biased", [False, True])
def test_a_transpose_behind_a_pointwise_layer(order: list[int], biased: bool) -> None:
    nodes = [
        make("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=0, name="weight"),
        make("Conv", ["x", "w"], ["b"], name="conv"),
        *([make("Add", ["b", "bias"], ["c"], name="add")] if biased else []),
        make("Transpose", ["c" if biased else "b"], ["y"], perm=order, name="transpose"),
    ]
    graph = graph_of(*nodes)
    guard_pointwise(graph)
    assert difference(graph) < 1e-5
    assert difference(graph_of(*nodes)) > 1e-3


def test_a_transpose_before_a_pointwise_layer() -> None:
    nodes = (
        make("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=0, name="weight"),
        make("Transpose", ["x"], ["a"], perm=[0, 1, 3, 2], name="transpose"),
        make("Conv", ["a", "w"], ["y"], name="conv"),
    )
    graph = graph_of(*nodes)
    guard_pointwise(graph)
    assert difference(graph) < 1e-5
    with pytest.raises(RuntimeError, match="Incompatible MatMul"):
        difference(graph_of(*nodes))


@pytest.mark.parametrize("counted", [None, 0, 1])
def test_a_window_larger_than_the_image(counted: int | None) -> None:
    """None: a maximum; else an average that counts the padding, or not, which makes no difference without any."""
    options: Any = dict(kernel_shape=[7, 3], strides=[2, 2], ceil_mode=1)
    if counted is not None:
        options["count_include_pad"] = counted
    pool = make("MaxPool" if counted is None else "AveragePool", ["x"], ["y"], name="pool", **options)
    graph = graph_of(pool)
    with pytest.raises(Exception, match="Kernel after dilation"):
        difference(graph_of(pool))
    fit_windows(graph)
    assert difference(graph) < 1e-6
