"""CPUs with OpenVINO or ONNX Runtime: uint8 or int8 inputs, any zero point; int16 weights run in float."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import ClassVar

import numpy as np

from lbitcls.deploy.passes.concatenations import concatenate_integers
from lbitcls.deploy.passes.containers import signed_inputs, to_uint8
from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.passes.guards import (
    guard_float_layers,
    guard_grids,
    guard_integers,
    guard_pointwise,
    guard_scales,
    guard_sums,
)
from lbitcls.deploy.passes.maxima import split_maxima
from lbitcls.deploy.passes.windows import fit_windows
from lbitcls.deploy.runtime.engines.openvino import ONE_THREAD, openvino_core
from lbitcls.deploy.runtime.metadata import require
from lbitcls.deploy.targets.base import Choice, Target
from lbitcls.registry import TARGETS

_ROUNDS, _SECONDS = 60, 3.0  # limits on the measurement of containers: whichever comes first
_GAIN = 0.95  # int8 is chosen if it takes less than this fraction of uint8's time


@TARGETS.register_module(name="cpu")
class CPU(Target):
    """x86 and Arm CPUs; guards in the graph keep the engines' optimizations correct."""

    engines: ClassVar[Sequence[str]] = ("openvino", "onnxruntime")

    def shape(self, graph: Graph) -> None:
        """Arrange concatenations; guard results against the engines' fusions."""
        concatenate_integers(graph)
        guard_scales(graph)
        guard_float_layers(graph)
        split_maxima(graph)
        if "openvino" in self.engines:
            guard_sums(graph)
            guard_integers(graph)
            guard_pointwise(graph)
            fit_windows(graph)

    def shape_backbone(self, graph: Graph) -> None:
        """Guard the grids of sums and products against OpenVINO's fusions."""
        guard_grids(graph)

    def choose_container(self, graph: Graph, input_shape: tuple[int, int, int] | None) -> Choice:
        """Choose the container of signed inputs by timing both on OpenVINO, in turns.

        `int8` is chosen only if it is at least 5 % faster, since `uint8` is rounded more accurately (see `to_uint8`),
        and ONNX Runtime opens the graph. Without OpenVINO, or if it cannot run the graph, the choice is `uint8`.
        """
        if not signed_inputs(graph):
            return Choice()
        times = {} if input_shape is None else measure(graph, input_shape)
        if times and times["int8"] < _GAIN * times["uint8"] and _opens_in_onnxruntime(graph):
            return Choice("int8", times)
        to_uint8(graph)
        return Choice("uint8", times)


def _opens_in_onnxruntime(graph: Graph) -> bool:
    """True unless ONNX Runtime refuses the graph: 1.31 does so for a MaxPool after a MaxPool of int8 values."""
    if find_spec("onnxruntime") is None:
        return True
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        runtime.InferenceSession(graph.save().SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # it has many kinds
        return False
    return True


def measure(graph: Graph, input_shape: tuple[int, int, int]) -> dict[str, float]:
    """Return a graph's latency in ms by container of its signed inputs; empty if OpenVINO is missing or fails."""
    if find_spec("openvino") is None:
        return {}
    int8 = graph.save().SerializeToString()
    other = Graph(require("onnx").load_model_from_string(int8))
    to_uint8(other)
    try:
        return _latencies({"int8": int8, "uint8": other.save().SerializeToString()}, input_shape)
    except Exception:  # an operation that OpenVINO lacks: it will not run the file, which the export reports
        return {}


def _latencies(models: dict[str, bytes], input_shape: tuple[int, int, int]) -> dict[str, float]:
    """Return the latency of each model in ms, at batch size 1 on one thread.

    The models run in turns, and the ratio of the two is the median over the turns, so that other work on the machine
    counts little: the first gets its minimum latency, the other this minimum times the ratio.
    """
    core = openvino_core()
    image = np.zeros((1, *input_shape), np.float32)
    requests = {}
    for name, content in models.items():
        model = core.read_model(content)
        model.reshape(image.shape)
        requests[name] = core.compile_model(model, "CPU", ONE_THREAD).create_infer_request()
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
