"""Editable ONNX graph of a model, and passes over it: names, separate weights, positive scales, opset 17."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.deploy.runtime.metadata import require
from lbitcls.utils.errors import ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPERATIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
POOLS = ("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin")
"""Operations that return one of their input's values, chosen by order only."""
_SCOPES = "pkg.torch.onnx.name_scopes"


class Graph:
    """Editable ONNX model: the producer and the consumers of each tensor, and the constants."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that outputs a tensor; None for constants and the graph's inputs."""
        return next((node for node in self.nodes if name in node.output), None)

    def consumers(self, name: str) -> list[NodeProto]:
        """Return the nodes that consume a tensor."""
        return [node for node in self.nodes if name in node.input]

    def only_consumer(self, name: str) -> NodeProto | None:
        """Return the node that consumes a tensor; None if there are several, or the tensor is a graph output."""
        nodes = self.consumers(name)
        return nodes[0] if len(nodes) == 1 and name not in self.outputs else None

    def array(self, name: str) -> np.ndarray | None:
        """Return the value of a constant; None if the tensor is not a constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else require("onnx").numpy_helper.to_array(tensor)

    def add_constant(self, name: str, value: np.ndarray, replace: bool = False) -> str:
        """Add a constant and return its name: `name`, numbered if taken (`replace`: the old constant is dropped)."""
        name = name if replace else self.free_name(name)
        self.constants[name] = require("onnx").numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def add_node(
        self, kind: str, inputs: list[str], output: str, after: NodeProto | None, name: str, **attributes: Any
    ) -> NodeProto:
        """Add a node behind `after` (None: as the first), and return it; its name is numbered if taken."""
        name = _numbered(name, {node.name for node in self.nodes})
        node = require("onnx").helper.make_node(kind, inputs, [output], name=name, **attributes)
        self.nodes.insert(0 if after is None else self.nodes.index(after) + 1, node)
        return node

    def free_name(self, name: str) -> str:
        """Return a name for a new tensor: `name`, numbered if a constant or another tensor has it."""
        made = (output for node in self.nodes for output in node.output)
        return _numbered(name, {*self.constants, *made, *(value.name for value in self.model.graph.input)})

    def append_to(self, node: NodeProto, kind: str, operand: str, name: str) -> NodeProto:
        """Add a node `kind(output of node, operand)`, which takes over the name of the node's output, and return it."""
        output = node.output[0]
        node.output[0] = self.free_name(f"{output}_before_{kind.lower()}")
        return self.add_node(kind, [node.output[0], operand], output, node, name)

    def redirect(self, old: str, new: str) -> None:
        """Make all consumers of the tensor `old` consume `new`."""
        for node in self.consumers(old):
            node.input[:] = [new if name == old else name for name in node.input]

    def bypass(self, node: NodeProto, before: NodeProto) -> None:
        """Remove `node`, the only consumer of `before`; `before` now produces the output of `node`."""
        before.output[0] = node.output[0]
        self.nodes.remove(node)

    def save(self) -> ModelProto:
        """Return the model with its changes, without nodes and constants that lead to no output."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        graph = self.model.graph
        nodes, constants = kept[::-1], [tensor for name, tensor in self.constants.items() if name in needed]
        for field, values in ((graph.node, nodes), (graph.initializer, constants)):
            del field[:]
            field.extend(values)
        self.nodes, self.constants = list(graph.node), {tensor.name: tensor for tensor in graph.initializer}
        return self.model


def _numbered(name: str, taken: Collection[str]) -> str:
    """Return `name`, numbered if it is taken."""
    return next(free for free in chain([name], (f"{name}_{number}" for number in count(2))) if free not in taken)


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    helper = require("onnx").helper
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def check_flat(graph: Graph) -> None:
    """Raise `ConfigError` if the graph branches: passes do not see the inside of a branch."""
    branching = [node.name for node in graph.nodes if any(a.HasField("g") or a.graphs for a in node.attribute)]
    if branching:
        raise ConfigError(
            f"the model branches at run time ({', '.join(branching)}; torch.cond, or a loop), which cannot be "
            "exported with integer layers; compute both sides, and choose with torch.where."
        )


def name_nodes(graph: Graph, root: str) -> None:
    """Name nodes after the modules that they come from, and drop the tracer's notes on them.

    A layer's operation gets the layer's name, other nodes get their module's name and their kind; `root` is the name of
    the traced module's child that is the model.
    """
    names = [_node_name(graph, node, root) for node in graph.nodes]
    given: set[str] = set()
    for node, name in zip(graph.nodes, names, strict=True):
        node.name = _numbered(name, given if name not in given else given.union(names))
        given.add(node.name)
    for node in graph.nodes:
        node.doc_string = ""
        del node.metadata_props[:]
    _forget(graph.model)
    _name_constants(graph, root)


def _node_name(graph: Graph, node: NodeProto, root: str) -> str:
    scope = _scope(node, root)
    if node.op_type not in OPERATIONS:
        return "/".join(filter(None, (scope, node.op_type)))
    return _scope_of_weight(graph, node, root) or scope or _owner(node.input[1], root) or node.op_type


def _forget(model: ModelProto) -> None:
    """Drop the tracer's notes."""
    graph = model.graph
    for tensor in graph.initializer:
        tensor.doc_string = ""
    for noted in (model, graph, *graph.initializer, *graph.input, *graph.output):
        del noted.metadata_props[:]
    del graph.value_info[:]
    model.doc_string = graph.doc_string = ""


def _name_constants(graph: Graph, root: str) -> None:
    """Drop `root` from the constants' names; a parameter may have the name of a result, such as `mean`."""
    taken = {*graph.outputs, *(value.name for value in graph.model.graph.input), *graph.constants}
    taken.update(output for node in graph.nodes for output in node.output)
    names: dict[str, str] = {}
    for tensor in graph.model.graph.initializer:
        if tensor.name.startswith(f"{root}.") and tensor.name not in graph.outputs:
            names[tensor.name] = _numbered(tensor.name.removeprefix(f"{root}."), taken)
            tensor.name = names[tensor.name]
            taken.add(tensor.name)
    graph.constants = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    for node in graph.nodes:
        node.input[:] = [names.get(name, name) for name in node.input]


def _scope(node: NodeProto, root: str) -> str:
    """Return the name of the module that a node comes from, without `root`; empty if unknown."""
    noted = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    modules = [scope for scope in ast.literal_eval(noted)[:-1] if scope.startswith(f"{root}.")]
    return modules[-1].removeprefix(f"{root}.") if modules else ""


def _scope_of_weight(graph: Graph, node: NodeProto, root: str) -> str:
    """Return the layer's name according to its integer weight, which graph optimizations do not change."""
    weight = graph.producer(node.input[1])
    while weight is not None and weight.op_type in ("Transpose", "Cast"):
        weight = graph.producer(weight.input[0])
    return _scope(weight, root) if weight is not None and weight.op_type == "DequantizeLinear" else ""


def _owner(constant: str, root: str) -> str:
    """Return the name of the module whose weight a constant is; empty if it is not a weight."""
    return constant.removeprefix(f"{root}.").removesuffix(".weight") if constant.endswith(".weight") else ""


def weights_of(graph: Graph) -> list[NodeProto]:
    """Return the DequantizeLinear nodes of integer weights."""
    nodes = [node for node in graph.nodes if node.op_type == "DequantizeLinear"]
    return [node for node in nodes if node.input[0] in graph.constants]


def operation_of(graph: Graph, weight: NodeProto) -> NodeProto | None:
    """Return the layer's operation that uses a weight; None if the weight is used in any other way."""
    taken = weight.output[0]
    node = graph.only_consumer(taken)
    if node is not None and node.op_type == "Transpose":
        taken = node.output[0]
        node = graph.only_consumer(taken)
    return node if node is not None and node.op_type in OPERATIONS and list(node.input).index(taken) == 1 else None


def separate_weights(graph: Graph) -> None:
    """Give each use of a weight (a layer that is called twice) its own DequantizeLinear and constants."""
    for weight in weights_of(graph):
        for node in graph.consumers(weight.output[0]):
            if node.op_type == "Transpose":
                _for_each_user(graph, node)
        _for_each_user(graph, weight)
    uses: dict[str, int] = defaultdict(int, dict.fromkeys(graph.outputs, 1))
    weights = weights_of(graph)
    for node in graph.nodes:
        for name in () if node in weights else node.input:
            uses[name] += 1
    for weight in weights:
        for position, name in enumerate(weight.input):
            uses[name] += 1
            if uses[name] > 1:
                weight.input[position] = graph.add_constant(name, known_array(graph, name))


def _for_each_user(graph: Graph, node: NodeProto) -> None:
    """Copy `node` for each consumer of its result but the first."""
    for number, user in enumerate(graph.consumers(node.output[0])[1:], 2):
        output = graph.free_name(f"{node.output[0]}_{number}")
        graph.add_node(node.op_type, list(node.input), output, node, node.name, **attributes(node))
        user.input[:] = [output if name == node.output[0] else name for name in user.input]


def drop_repeated(graph: Graph) -> None:
    """Remove each quantization of a tensor that is already on the same grid."""
    for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        bounds = graph.producer(node.input[0])
        source = bounds.input[0] if bounds is not None and bounds.op_type == "Clip" else node.input[0]
        before = through_pools(graph, source)
        if before is None or before.op_type != "DequantizeLinear" or not same_grid(graph, before, node):
            continue
        first = graph.producer(before.input[0])
        assert first is not None
        if _bounds(graph, first) == _bounds(graph, node):
            for after in graph.consumers(node.output[0]):
                graph.redirect(after.output[0], source)


def through_pools(graph: Graph, name: str) -> NodeProto | None:
    """Return the node that outputs a tensor, or the tensor of which it is a maximum or minimum."""
    node = graph.producer(name)
    while node is not None and node.op_type in POOLS:
        node = graph.producer(node.input[0])
    return node


def same_grid(graph: Graph, left: NodeProto, right: NodeProto) -> bool:
    """Return True if two quantizations or dequantizations have the same constant scale and zero point."""
    pairs = ((graph.array(left.input[i]), graph.array(right.input[i])) for i in (1, 2))
    return all(a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def _bounds(graph: Graph, quantize: NodeProto) -> tuple[float | str, ...]:
    """Return the bounds of a Clip before a quantization; the name of a bound that is computed or omitted."""
    clip = graph.producer(quantize.input[0])
    if clip is None or clip.op_type != "Clip":
        return ()
    arrays = [graph.array(name) for name in clip.input[1:]]
    return tuple(name if array is None else float(array) for name, array in zip(clip.input[1:], arrays, strict=True))


def known_array(graph: Graph, name: str) -> np.ndarray:
    """Return the value of a tensor that is a constant."""
    array = graph.array(name)
    assert array is not None, name
    return array


def settle_signs(graph: Graph) -> None:
    """Make all scales of weights positive: a negative scale changes the sign of its channel's integers.

    If these do not fit (-128 in int8), the channel's sign stays outside, as a factor on the layer's result. A channel
    whose scale is 0 gets zeros as integers, and the scale 1.
    """
    for weight in weights_of(graph):
        scale, codes = known_array(graph, weight.input[1]), known_array(graph, weight.input[0])
        if scale.ndim == 0 or (scale > 0).all():
            continue
        axis = attributes(weight).get("axis", 1)
        rows = np.moveaxis(codes, axis, 0).astype(np.int32)
        flat = rows.reshape(len(scale), -1)
        flipped = (scale < 0) & (flat.min(1) > np.iinfo(codes.dtype).min)
        outside = (scale < 0) & ~flipped
        flat = np.where(scale[:, None] == 0, 0, np.where(flipped[:, None], -flat, flat))
        codes = np.moveaxis(flat.reshape(rows.shape), 0, axis).astype(codes.dtype)
        weight.input[0] = graph.add_constant(weight.input[0], codes, replace=True)
        scale = np.where(scale == 0, np.float32(1), np.abs(scale))
        weight.input[1] = graph.add_constant(weight.input[1], scale, replace=True)
        if outside.any():
            sign_outside(graph, weight, outside)


def sign_outside(graph: Graph, weight: NodeProto, negative: np.ndarray) -> None:
    """Multiply the results of the layer that uses a weight by -1 in the channels that are marked in `negative` (C,)."""
    operation = operation_of(graph, weight)
    assert operation is not None, weight.name
    sign = np.where(negative, np.float32(-1), np.float32(1))
    trailing = 0 if operation.op_type in ("Gemm", "MatMul") else known_array(graph, weight.input[0]).ndim - 2
    constant = graph.add_constant(f"{operation.name}.sign", sign.reshape(-1, *[1] * trailing))
    graph.append_to(operation, "Mul", constant, f"{operation.name}/Mul")


_CHANGED_IN_18 = {"Pad": 3, "Split": 2, "Resize": 4, "ScatterElements": 3, "ScatterND": 3}
"""Operations to which opset 18 added inputs or attributes, and their number of inputs before."""
_NEW_IN_18 = ("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "Mish")
_NEW_ATTRIBUTES = ("num_outputs", "antialias", "axes", "keep_aspect_ratio_policy")


def to_opset_17(graph: Graph) -> None:
    """Convert a graph from opset 18 to 17, where the axes of reductions are attributes.

    Raises:
        ConfigError: It has an operation that opset 17 does not support in this form.
    """
    for node in graph.nodes:
        known = attributes(node)
        lacking = node.op_type in _NEW_IN_18
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            given = len(node.input) > 1 and node.input[1] != ""
            axes = graph.array(node.input[1]) if given else None
            lacking = axes is None and (given or known.get("noop_with_empty_axes", 0) == 1)
            kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
            del node.attribute[:], node.input[1:]
            node.attribute.extend(kept)
            if axes is not None:
                node.attribute.append(require("onnx").helper.make_attribute("axes", axes.tolist()))
        extended = node.op_type in _CHANGED_IN_18 and (
            len(node.input) > _CHANGED_IN_18[node.op_type] or any(name in known for name in _NEW_ATTRIBUTES)
        )
        if extended or lacking:
            raise ConfigError(
                f"{node.name} cannot be written at opset 17, which lacks this {node.op_type}; use 18 to 21."
            )
    for imported in graph.model.opset_import:
        if imported.domain in ("", "ai.onnx"):
            imported.version = 17
    graph.model.ir_version = 8
