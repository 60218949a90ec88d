"""Grids for the tensors that training left in float, so that an integer engine can run the operations between layers.

An engine for integers stores every tensor in 8 bits, also those that training did not quantize: the result of a
convolution that goes into an addition, the result of the addition that the next addition reads, and so on. Their grids
come from calibration images: the range with the least squared error. Where a layer with fewer bits reads the same
tensor, its step is an odd multiple of the new one: then rounding twice gives the same level as rounding once, because
the middle between two of the layer's levels is also a middle between two of the finer ones.

Each value that such rounding moves to another of few levels moves the next layer's values: in a network of fewer
than 8 bits, a hundredth of a percent of them grows to a tenth within some layers. There, additions of two tensors, and
the layers whose results they add, stay in float32.

A result on which only the model's output depends gets 16 bits: in 8 bits, logits of many classes would be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.runtime.metadata import require
from lbitcls.deploy.targets.tflite.flatfile import TFLiteGrid
from lbitcls.deploy.targets.tflite.operations import FIXED, INTEGER
from lbitcls.deploy.targets.tflite.reading import BOUNDS, LAYERS, MOVING, Source

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_LEVELS = 256
_TINY = float(np.finfo(np.float32).tiny)
_SAMPLE = 2**14  # values kept of a tensor and batch
_FRACTIONS = np.linspace(0.3, 1.0, 36)  # of the range that are tried
_LOSS = 4.0  # factor by which the squared error may grow on a grid that a layer reads without rounding twice
_CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"Tanh": np.tanh, "Sigmoid": lambda x: 1 / (1 + np.exp(-x))}


@dataclass
class Sample:
    """Values of a tensor for the calibration images: a subsample, and the ends of the range, which contains 0."""

    low: float = 0.0
    high: float = 0.0
    parts: list[np.ndarray] = field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        """Add a batch."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        flat = values.reshape(-1)
        self.parts.append(flat[:: max(1, len(flat) // _SAMPLE)].astype(np.float64))

    @property
    def values(self) -> np.ndarray:
        """Subsample of all batches."""
        return np.concatenate(self.parts)


def fill(graph: Graph, batches: Sequence[np.ndarray]) -> list[str]:
    """Quantize the tensors between integer layers that have no grid; return their names.

    Args:
        graph: Finished graph; changed in place.
        batches: float32 images (N, C, H, W), from which the ranges are computed.
    """
    source = Source(graph.save())
    points = _points(source)
    if not points:
        return []
    samples = _samples(source, graph.save(), [point.name for point in points], batches)
    for point in points:
        _insert(graph, point, _grid(source, point, samples[point.name]))
    graph.save()
    return [point.name for point in points]


@dataclass(frozen=True)
class _Point:
    """Tensor that needs a grid.

    Attributes:
        name: Tensor.
        users: Names of the nodes that shall read its integers; None: all.
        grids: Grids of the layers that read it.
        final: True if only the model's output depends on it.
    """

    name: str
    users: tuple[str, ...] | None = None
    grids: tuple[TFLiteGrid, ...] = ()
    final: bool = False


def _points(source: Source) -> list[_Point]:
    results = {_result(source, node): node for node in source.nodes if _in_integers(source, node)}
    sums = _sums_in_float(source)
    points = []
    for name in results:
        grids, others = _readers(source, name)
        final = name in source.outputs
        if final or any(node.output[0] not in sums for node in others):
            points.append(_Point(name, None, tuple(grids), final and not grids and not others))
    leading = _leading_to(source, {node.output[0] for node in results.values()}) - sums
    users: dict[str, list[str]] = {}
    for node in source.nodes:
        if node.op_type in INTEGER and node.output[0] in leading:
            for name in node.input:
                if name not in results and _origin(source, name) not in sums and _is_float(source, name):
                    users.setdefault(name, []).append(node.name)
    points += [_Point(name, tuple(takers), tuple(_readers(source, name)[0])) for name, takers in users.items()]
    return points


def _sums_in_float(source: Source) -> set[str]:
    """Return the additions of two tensors, if layers of fewer than 8 bits read any tensor; else nothing."""
    grids = [source.grid(node) for node in source.nodes if node.op_type == "QuantizeLinear"]
    if all(grid.high - grid.low >= _LEVELS // 2 for grid in grids):
        return set()
    additions = [node for node in source.nodes if node.op_type == "Add"]
    return {node.output[0] for node in additions if all(source.array(name) is None for name in node.input)}


def _origin(source: Source, name: str) -> str:
    """Return the tensor of whose values, moved or within bounds, another one consists."""
    node = source.producer(name)
    while node is not None and node.op_type in (*MOVING, *BOUNDS) and node.op_type != "Concat":
        name = node.input[0]
        node = source.producer(name)
    return name


def _is_float(source: Source, name: str) -> bool:
    """Return True for a float tensor that is neither a constant, nor dequantized, nor computed by a layer."""
    known = source.array(name) is not None or source.is_held(name)
    return not known and source.layer(name) is None and source.producer(name) is not None


def _in_integers(source: Source, node: NodeProto) -> bool:
    if node.op_type not in LAYERS:
        return False
    layer, before = source.layer(node.output[0]), source.producer(node.input[0])
    return (
        layer is not None and layer.scales is not None and before is not None and before.op_type == "DequantizeLinear"
    )


def _result(source: Source, node: NodeProto) -> str:
    """Return the last tensor that a layer's operation computes: behind its bias and the bounds after it."""
    name = node.output[0]
    while name not in source.outputs and len(source.consumers(name)) == 1:
        after = source.consumers(name)[0]
        belongs = after.op_type in BOUNDS or source.layer(after.output[0]) is not None
        if not belongs or source.producer(after.output[0]).op_type in LAYERS:  # type: ignore[union-attr]
            break
        if after.op_type == "Clip" and _leads_to_quantize(source, after):
            break  # it ends the grid of the layer that reads it
        name = after.output[0]
    return name


def _leads_to_quantize(source: Source, clip: NodeProto) -> bool:
    users = source.consumers(clip.output[0])
    return len(users) == 1 and users[0].op_type == "QuantizeLinear"


def _readers(source: Source, name: str) -> tuple[list[TFLiteGrid], list[NodeProto]]:
    """Return the grids on which layers read a tensor, also through moves and bounds, and all other readers."""
    grids: list[TFLiteGrid] = []
    others: list[NodeProto] = []
    for node in source.consumers(name):
        if node.op_type == "QuantizeLinear":
            grids.append(source.grid(node))
        elif node.op_type in (*MOVING, *BOUNDS):
            for output in node.output:
                found = _readers(source, output)
                grids += found[0]
                others += found[1]
                others += [node] if output in source.outputs else []
        else:
            others.append(node)
    return grids, others


def _leading_to(source: Source, targets: set[str]) -> set[str]:
    """Return the tensors from which one of `targets` is computed."""
    found = set(targets)
    for node in reversed(source.nodes):
        if found.intersection(node.output):
            found.update(node.input)
    return found


def _samples(
    source: Source, model: ModelProto, names: Sequence[str], batches: Iterable[np.ndarray]
) -> dict[str, Sample]:
    """Return samples of tensors, as ONNX Runtime computes them."""
    onnx, runtime = require("onnx"), require("onnxruntime")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    more = [name for name in names if name not in source.outputs]
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * len(source.shape(name)))
        for name in more
    )
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    samples = {name: Sample() for name in names}
    for images in batches:
        for name, values in zip(names, session.run(list(names), {source.image: images}), strict=True):
            samples[name].add(values)
    return samples


def _grid(source: Source, point: _Point, sample: Sample) -> TFLiteGrid:
    made_by = source.producer(point.name)
    if made_by is not None and made_by.op_type in FIXED:
        return FIXED[made_by.op_type]
    if point.final:
        scale = max(-sample.low, sample.high, _TINY) * 1.5 / 32767  # room for other images
        return TFLiteGrid.of_levels(float(np.float32(scale)), -32768, 32767)
    curves = {node.op_type for node in source.consumers(point.name)}
    seen_as = _CURVES.get(curves.pop()) if len(curves) == 1 else None
    values = sample.values
    free = _best(_by_range(sample), values, seen_as)
    shared = [grid for reader in set(point.grids) for grid in _refined(reader, sample)]
    if not shared:
        return free
    best = _best(shared, values, seen_as)
    return best if _error(best, values, seen_as) <= _LOSS * _error(free, values, seen_as) else free


def _by_range(sample: Sample) -> list[TFLiteGrid]:
    """Return candidates: the whole range, and parts of it around 0."""
    span = max(sample.high - sample.low, _TINY * _LEVELS)
    grids = []
    for fraction in _FRACTIONS:
        scale = float(np.float32(span * fraction / (_LEVELS - 1)))
        low = -int(np.clip(np.rint(-sample.low * fraction / scale), 0, _LEVELS - 1))
        grids.append(TFLiteGrid.of_levels(scale, low, low + _LEVELS - 1))
    return grids


def _refined(reader: TFLiteGrid, sample: Sample) -> list[TFLiteGrid]:
    """Return grids of 256 levels, of which a layer's levels are every first, third, fifth, … one."""
    low, high = reader.low - reader.zero, reader.high - reader.zero
    grids = []
    for times in range(1, _LEVELS, 2):
        if (high - low) * times >= _LEVELS:
            break
        scale = float(np.float32(reader.scale / times))
        least = min(low * times, -int(np.rint(-sample.low / scale)))
        least = max(least, high * times - (_LEVELS - 1), -(_LEVELS - 1))
        grids.append(TFLiteGrid.of_levels(scale, least, least + _LEVELS - 1))
    return grids


def _best(
    grids: Sequence[TFLiteGrid], values: np.ndarray, seen_as: Callable[[np.ndarray], np.ndarray] | None
) -> TFLiteGrid:
    return min(grids, key=lambda grid: _error(grid, values, seen_as))


def _error(grid: TFLiteGrid, values: np.ndarray, seen_as: Callable[[np.ndarray], np.ndarray] | None) -> float:
    """Return the mean squared error of values on a grid, also as the function `seen_as` of them."""
    rounded = np.clip(np.rint(values / grid.scale), grid.low - grid.zero, grid.high - grid.zero) * grid.scale
    difference = rounded - values if seen_as is None else seen_as(rounded) - seen_as(values)
    return float(np.square(difference).mean())


def _insert(graph: Graph, point: _Point, grid: TFLiteGrid) -> None:
    """Quantize and dequantize a tensor for those that shall read its integers."""
    scale = graph.add_constant(f"{point.name}.scale", np.array(grid.scale, np.float32))
    zero = graph.add_constant(f"{point.name}.zero_point", np.array(grid.zero, grid.dtype))
    made = graph.producer(point.name)
    taken, output = point.name, graph.free_name(f"{point.name}_on_grid")
    if point.name in graph.outputs and made is not None:
        taken = graph.free_name(f"{point.name}_before_rounding")
        made.output[list(made.output).index(point.name)] = taken
        output = point.name
    users = graph.consumers(point.name)
    integers = graph.free_name(f"{point.name}_integers")
    label = made.name if made is not None else point.name
    quantize = graph.add_node("QuantizeLinear", [taken, scale, zero], integers, made, f"{label}/QuantizeLinear")
    graph.add_node("DequantizeLinear", [integers, scale, zero], output, quantize, f"{label}/DequantizeLinear")
    for node in users:
        if point.users is None or node.name in point.users:
            node.input[:] = [output if name == point.name else name for name in node.input]
