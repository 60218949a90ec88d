"""What a target can take: refusals by layer name, the container of signed inputs, the structure of the file.

cpu       OpenVINO and ONNX Runtime: uint8 or int8 inputs, any zero point, int8 weights (int16: that layer in float)
tensorrt  int8 throughout, every zero point 0, weights with a scale for each output channel
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from lbitcls.deploy.export.graph import OPERATIONS, POOLS, Graph, attributes, operation_of, through_pools, weights_of
from lbitcls.deploy.export.lowering import LayerFacts, active, quantized_layers, weight_dtype
from lbitcls.deploy.runtime.engine import first_reason, load_usable, openvino_core
from lbitcls.deploy.runtime.metadata import require
from lbitcls.utils.errors import ConfigError, suggest

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

TARGETS = ("cpu", "tensorrt")
JUDGES = {"cpu": ("openvino", "onnxruntime"), "tensorrt": ("onnxruntime",)}
"""Engines that verify a target's files. OpenVINO needs `guard_scales`, which TensorRT's files do not have."""
INT16_OPSET = 21  # of DequantizeLinear on 16-bit integers
_ROUNDS, _SECONDS = 60, 3.0  # of the measurement of containers: whichever comes first
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": "1"}
_GAIN = 0.95  # what int8 must reach of uint8's time to be chosen


def check_target(target: str) -> None:
    """Raise `ConfigError` where there is no such target."""
    if target not in TARGETS:
        raise ConfigError(f"there is no target {target!r}{suggest(str(target), TARGETS)} Known: {', '.join(TARGETS)}.")


def check_layers(model: nn.Module, target: str, opset: int) -> None:
    """Raise `ConfigError` with the names of all layers that the target, or the opset, cannot take."""
    problems: dict[str, list[str]] = {}
    for name, layer in quantized_layers(model):
        for problem in _problems(layer, target, opset):
            problems.setdefault(problem, []).append(name)
    if problems:
        lines = "".join(f"\n  {', '.join(names)}: {problem}" for problem, names in problems.items())
        raise ConfigError(f"these layers cannot be exported for {target} at opset {opset}:{lines}")


def _problems(layer: Any, target: str, opset: int) -> list[str]:
    weight, inputs, found = layer.weight_quantizer, layer.input_quantizer, []
    if active(weight) and weight_dtype(weight.qparams(layer.weight_to_quantize())).itemsize > 1:
        if target == "tensorrt":
            found.append("its weights' integers do not fit 8 bits; train them with at most 6 bits, or by UQ or LSQ")
        elif opset < INT16_OPSET:
            found.append(f"its weights' integers need 16 bits, which ONNX has from opset {INT16_OPSET} on")
    if target == "tensorrt" and active(inputs):
        grid = inputs.qparams()
        if int(grid.zero_point) != 0:
            found.append("its input has a zero point; train it with LSQ or PACT, or signed=True, whose zero point is 0")
        if grid.quant_max > 127:
            found.append(
                f"its input's integers go up to {grid.quant_max}, int8's to 127; train it with num_bit_a=7 or "
                "signed=True"
            )
    return found


@dataclass(frozen=True)
class Choice:
    """The container of signed inputs, and the latency in ms by container where it was measured."""

    container: str = "int8"
    milliseconds: dict[str, float] = field(default_factory=dict)


def choose_container(graph: Graph, target: str, input_shape: tuple[int, int, int]) -> Choice:
    """Choose the container of all signed inputs, and bring the graph to it.

    Both are timed on OpenVINO, in turns; `int8` is taken where it is at least 5 % faster, since `uint8` is rounded
    more exactly (see `to_uint8`). Without OpenVINO, or where it cannot run the graph, it is `uint8`, for TensorRT
    `int8`.
    """
    signed = [node for node in graph.nodes if node.op_type == "QuantizeLinear" and _is_signed(graph, node)]
    if not signed or target != "cpu":
        return Choice()
    times = {}
    if find_spec("openvino") is not None:
        int8 = graph.save().SerializeToString()
        other = Graph(require("onnx").load_model_from_string(int8))
        to_uint8(other)
        try:
            times = _latencies({"int8": int8, "uint8": other.save().SerializeToString()}, input_shape)
        except Exception:  # an operation that OpenVINO lacks: it will not run the file, which the export reports
            times = {}
        if times and times["int8"] < _GAIN * times["uint8"]:
            return Choice("int8", times)
    to_uint8(graph)
    return Choice("uint8", times)


def cannot_run(path: str | Path, target: str) -> dict[str, str]:
    """The installed engines for a target's files that cannot run this one, with the reason.

    As long as OpenVINO, which lacks some operations, can convert the file, no engine is tried.
    """
    installed = [name for name in JUDGES[target] if find_spec(name) is not None]
    if "openvino" not in installed:
        return {}
    try:
        openvino_core().read_model(str(path))
    except Exception as error:  # OpenVINO has its own kinds
        others = [name for name in installed if name != "openvino"]
        return {"openvino": first_reason(error), **load_usable(path, others, threads=1)[1]}
    return {}


def _is_signed(graph: Graph, node: NodeProto) -> bool:
    zero_point = graph.array(node.input[2])
    return zero_point is not None and zero_point.dtype == np.int8


def to_uint8(graph: Graph) -> None:
    """Move all int8 inputs to uint8: every integer and zero point grows until the least is 0, and no value changes.

    OpenVINO subtracts the container's least value before it rounds, so what lies near it is rounded most exactly:
    zero point 8 for 4 bits, 128 for 8.
    """
    for node in [n for n in graph.nodes if n.op_type == "QuantizeLinear" and _is_signed(graph, n)]:
        zero_point, scale = (graph.array(node.input[i]) for i in (2, 1))
        assert zero_point is not None and scale is not None
        bounds = graph.producer(node.input[0])
        low = graph.array(bounds.input[1]) if bounds is not None and bounds.op_type == "Clip" else None
        # The Clip may be the model's own, with bounds beyond what the integers hold, or between two of them.
        least = -128 if low is None else max(-128, int(np.floor(low / scale + 1e-3)) + int(zero_point))
        value = np.array(int(zero_point) - least, np.uint8)
        name = graph.add_constant(f"{node.input[1].removesuffix('.scale')}.zero_point_uint8", value)
        for user in (node, *graph.consumers(node.output[0])):
            user.input[2] = name


def _latencies(models: dict[str, bytes], input_shape: tuple[int, int, int]) -> dict[str, float]:
    """Latency of each model at batch 1 on one thread, in ms.

    They are run in turns, and the ratio of the two is the median over the turns, so that other work on the machine
    counts little: the first has its least latency, the other that times the ratio.
    """
    core = openvino_core()
    image = np.zeros((1, *input_shape), np.float32)
    requests = {}
    for name, content in models.items():
        model = core.read_model(content)
        model.reshape(image.shape)
        requests[name] = core.compile_model(model, "CPU", _SETTINGS).create_infer_request()
        requests[name].infer([image])  # warms up
    times: dict[str, list[float]] = {name: [] for name in models}
    end = time.perf_counter() + _SECONDS
    while len(times[name]) < _ROUNDS and time.perf_counter() < end:
        for name, request in requests.items():
            start = time.perf_counter()
            request.infer([image])
            times[name].append(1e3 * (time.perf_counter() - start))
    first, *_ = times.values()
    least = min(first)
    return {n: round(least * float(np.median(np.divide(values, first))), 4) for n, values in times.items()}


_TINY = np.finfo(np.float32).tiny  # added to a float, changes nothing but an exact 0
_PASSING = ("Relu", "Clip", *POOLS, "AveragePool", "Reshape", "Flatten", "Transpose", "Slice", "Concat")
_FOLLOWED = (*_PASSING, "Squeeze", "Unsqueeze", "Expand", "Neg", "Abs", "Mul", "Split", "Pad", "Identity")
_KEPT_FLOAT = "KeptFloat"  # name of an addition that keeps the layer behind it from being computed in integers
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_ZERO_MATTERS = (*_COMPARISONS, "Sign", "Cast", "Ceil", "Log", "Reciprocal", "Div", "NonZero")


def guard_scales(graph: Graph) -> None:
    """Add the smallest number where nothing is added to integer results, so that OpenVINO takes no scale elsewhere.

    It moves the channels' scales behind what follows, and with them it changes the bounds of a Clip there (seen in
    2026.4: Conv, ReLU, MaxPool, Clip; also a Concat of integers on different grids). An addition keeps them in place.
    Nothing is added where an exact 0 is told from other numbers, by its sign for one.

    A ConvTranspose in integers also takes the bounds of a Clip behind it for others (2026.4), whatever is between; with
    an addition before it, it is computed in float.
    """
    for weight in weights_of(graph):
        operation = operation_of(graph, weight)
        if operation is not None:
            _guard_bias(graph, operation)
        if operation is not None and operation.op_type == "ConvTranspose" and _is_clipped(graph, operation.output[0]):
            smallest, taken = (
                graph.add_constant("smallest", np.array(_TINY)),
                graph.free_name(f"{operation.name}_float"),
            )
            graph.add_node(
                "Add", [operation.input[0], smallest], taken, graph.producer(operation.input[0]), _KEPT_FLOAT
            )
            operation.input[0] = taken
    for node in [node for node in graph.nodes if node.op_type == "Concat"]:
        if any(_from_integers(graph, name) for name in node.input) and not _zero_matters(graph, node.output[0]):
            graph.append_to(node, "Add", graph.add_constant("smallest", np.array(_TINY)), f"{node.name}/Guard")


def _guard_bias(graph: Graph, operation: NodeProto) -> None:
    last = operation
    after = graph.only_consumer(last.output[0])
    if after is not None and after.op_type == "Mul" and after.input[1] in graph.constants:  # signs
        last, after = after, graph.only_consumer(after.output[0])
    bias = None if after is None or after.op_type != "Add" else graph.array(after.input[1])
    if after is None or bias is None:
        if not _zero_matters(graph, last.output[0]):
            graph.append_to(last, "Add", graph.add_constant("smallest", np.array(_TINY)), f"{operation.name}/Guard")
    elif not bias.any() and not _zero_matters(graph, after.output[0]):
        after.input[1] = graph.add_constant(after.input[1], bias + _TINY)


def _is_clipped(graph: Graph, name: str) -> bool:
    """Whether a Clip takes a tensor, or what is made of it before the next layer or quantization."""
    users = graph.consumers(name)
    if any(user.op_type == "Clip" for user in users):
        return True
    users = [user for user in users if user.op_type not in (*OPERATIONS, "QuantizeLinear")]
    return any(_is_clipped(graph, out) for user in users for out in user.output)


def _zero_matters(graph: Graph, name: str) -> bool:
    """Whether a tensor, or what has the same zeros, is taken by an operation to which an exact 0 is special."""
    users = graph.consumers(name)
    if any(user.op_type in _ZERO_MATTERS for user in users):
        return True
    return any(_zero_matters(graph, out) for user in users if user.op_type in _FOLLOWED for out in user.output)


def _from_integers(graph: Graph, name: str) -> bool:
    node = graph.producer(name)
    if node is None or node.op_type not in _PASSING:
        return node is not None and node.op_type == "DequantizeLinear"
    return any(_from_integers(graph, inner) for inner in node.input)


def with_container(fact: LayerFacts, choice: Choice, target: str) -> LayerFacts:
    """The facts of a layer with the container that was chosen."""
    if fact.container is None:
        return fact
    if target == "tensorrt":
        return replace(fact, container="int8")
    return replace(fact, container=choice.container) if fact.signed else fact


def check_structure(model: ModelProto, target: str) -> None:
    """Raise `ConfigError` where the graph is not what TensorRT takes; by structure, since it may not be installed."""
    if target != "tensorrt":
        return
    graph, faults = Graph(model), []
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = graph.array(node.input[1]), graph.array(node.input[2])
            if zero is None or zero.dtype != np.int8 or zero.any():
                faults.append(f"{node.name} has no int8 zero point of 0")
            if scale is None or not (scale > 0).all():
                faults.append(f"{node.name} has a scale that is not above 0")
    for weight in weights_of(graph):
        operation = graph.consumers(weight.output[0])[0]
        axis = 1 if operation.op_type == "ConvTranspose" else 0
        if attributes(weight).get("axis", 1) != axis:
            faults.append(f"{weight.name} has its scales on another axis than {axis}")
    if faults:
        raise ConfigError(f"the file is not what TensorRT takes: {'; '.join(faults)}")


def integer_layers(path: str | Path) -> dict[str, Any]:
    """Which convolutions and linear layers of a file OpenVINO runs in integers.

    Returns:
        `convolutions`, `linear`: dicts with `integer` (a number), `total`, and `float`: names of the others, each with
        the reason.
    """
    in_integers: set[str] = set()
    for facts in executed_operations(path):
        if facts["runtimePrecision"] in ("u8", "i8") and facts["layerType"] in _LAYERS:
            in_integers.update(facts["originalLayersNames"].split(","))
    graph = Graph(require("onnx").load(str(path)))
    found: dict[str, Any] = {kind: {"integer": 0, "total": 0, "float": {}} for kind in ("convolutions", "linear")}
    for node in graph.nodes:
        if node.op_type in OPERATIONS and not _of_activations(graph, node):
            group = found["convolutions" if "Conv" in node.op_type else "linear"]
            group["total"] += 1
            if in_integers & _names(graph, node):
                group["integer"] += 1
            else:
                group["float"][node.name] = _why_float(graph, node)
    return found


_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_FACTS = ("layerType", "runtimePrecision", "originalLayersNames")


def executed_operations(path: str | Path) -> list[dict[str, str]]:
    """`layerType`, `runtimePrecision` and `originalLayersNames` of each operation that OpenVINO makes of a file."""
    compiled = openvino_core().compile_model(str(path), "CPU", _SETTINGS)
    found = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    return [{key: facts[key].astype(str) for key in _FACTS} for facts in found]


def _names(graph: Graph, node: NodeProto) -> set[str]:
    """Names that OpenVINO may give a layer: the node's own, that of the Add of its bias, and those of their results."""
    names = {node.name, *node.output}
    add = graph.only_consumer(node.output[0])
    return names if add is None or add.op_type != "Add" else names | {add.name, *add.output}


def _of_activations(graph: Graph, node: NodeProto) -> bool:
    """Whether both operands are computed from the image (attention, for one): no layer."""
    return not any(_constant_below(graph, name) for name in node.input[:2])


def _constant_below(graph: Graph, name: str) -> bool:
    node = graph.producer(name)
    if node is None:
        return name in graph.constants
    return node.op_type in ("DequantizeLinear", "Transpose", "Cast") and _constant_below(graph, node.input[0])


def _why_float(graph: Graph, node: NodeProto) -> str:
    weight = graph.producer(node.input[1])
    while weight is not None and weight.op_type in ("Transpose", "Cast"):
        weight = graph.producer(weight.input[0])
    source = through_pools(graph, node.input[0])
    if weight is None or weight.op_type != "DequantizeLinear":
        return "its weight is float"
    if source is not None and source.name.startswith(_KEPT_FLOAT):
        return "OpenVINO would take the bounds behind it for others"
    if source is None or source.op_type != "DequantizeLinear":
        return "its input is float"
    codes = graph.array(weight.input[0])
    if codes is not None and codes.dtype.itemsize > 1:
        return "its weights' integers need 16 bits"
    return f"OpenVINO has no integer kernel for this {node.op_type}"
