"""qonnx's own executor of QONNX files: one operation at a time, in NumPy and ONNX Runtime; exact, and slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.deploy.runtime.engine import Description, Engine
from lbitcls.deploy.runtime.metadata import read_onnx, require
from lbitcls.deploy.runtime.weighted import layers_of
from lbitcls.registry import ENGINES

if TYPE_CHECKING:
    from onnx import ModelProto

DOMAIN, VERSION = "qonnx.custom_op.general", 1
"""Operator set of `Quant`, and its version."""
_KEEPING = ("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Reshape", "Flatten", "Transpose", "Squeeze")
"""Operations whose results are values of their input."""


@ENGINES.register_module(name="qonnx")
class QONNXEngine(Engine):
    """Executor of the package qonnx, which FINN also uses to check its steps; the number of threads is its own."""

    name = "qonnx"
    package = "qonnx"
    extra = "qonnx"
    is_timed = False

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        super().__init__(path, threads, precision)
        self._model = read_onnx(path)
        self._executor = executor(self._model.ir_version)
        self._models: dict[int, Any] = {}
        self._lock = Lock()

    def _describe(self, path: Path) -> Description:
        """Read a file's description; one that lbitcls wrote runs on any number of images, whatever it states."""
        found = super()._describe(path)
        return found if found.info is None else replace(found, fixed_batch=None)

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        from qonnx.core.modelwrapper import ModelWrapper

        batch = len(images)
        with self._lock:
            if batch not in self._models:
                self._models = {batch: ModelWrapper(with_shapes(self._model, batch))}
            outputs = self._executor.execute_onnx(self._models[batch], {self._model.graph.input[0].name: images})
        return [outputs[name] for name in self.output_names]

    def integer_counts(self) -> tuple[int, int]:
        """Return how many layers have a weight and an input that are results of `Quant`, and how many there are."""
        producers = {output: node for node in self._model.graph.node for output in node.output}

        def quantized(name: str) -> bool:
            node = producers.get(name)
            while node is not None and node.op_type in _KEEPING:
                node = producers.get(node.input[0])
            return node is not None and node.op_type == "Quant"

        layers = layers_of(self._model)
        return sum(quantized(node.input[0]) and quantized(node.input[1]) for node in layers), len(layers)


def executor(ir_version: int) -> Any:
    """Return qonnx's module of the executor, whose models of one operation get the IR version of the file.

    It asks for onnx's newest, which an ONNX Runtime that is a few weeks older does not read (onnx 1.23, 1.31).
    """
    require("qonnx", "qonnx")
    from qonnx.core import onnx_exec
    from qonnx.util.basic import qonnx_make_model

    onnx_exec.qonnx_make_model = partial(qonnx_make_model, ir_version=ir_version)
    return onnx_exec


def with_shapes(model: ModelProto, batch: int) -> ModelProto:
    """Return a copy of a model with Quant nodes for a batch size, with the shape of every tensor.

    ONNX does not know the shape of a Quant's result, which is that of its input: `Identity` takes its place meanwhile.
    """
    onnx = require("onnx")
    given, twin = onnx.ModelProto(), onnx.ModelProto()
    given.CopyFrom(model)
    del given.graph.value_info[:]
    for value in (*given.graph.input, *given.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    twin.CopyFrom(given)
    for node in twin.graph.node:
        if node.domain == DOMAIN:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(twin, check_type=True, strict_mode=True, data_prop=True)
    given.graph.value_info.extend(inferred.graph.value_info)
    return given
