"""ONNX Runtime's CPU provider: the portable referee of ONNX files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.engine import Engine
from lbitcls.deploy.runtime.metadata import read_onnx, require
from lbitcls.deploy.runtime.weighted import layers_of
from lbitcls.registry import ENGINES

_INTEGER = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")
"""ONNX Runtime's layers that multiply integers."""


@ENGINES.register_module(name="onnxruntime")
class ONNXRuntimeEngine(Engine):
    """ONNX Runtime's CPU provider: the portable reference; integer layers gain little speed in it."""

    name = "onnxruntime"
    package = "onnxruntime"
    targets = ("web",)  # it runs the model of a page, too

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        super().__init__(path, threads, precision)
        self._session = self._open()
        self._input = self._session.get_inputs()[0].name

    def _open(self, optimized: Path | None = None) -> Any:
        """Open the file; write the graph that ONNX Runtime runs to `optimized`."""
        onnxruntime = require("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # lbitcls reports errors itself, once
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads use no CPU
        # Else a MatMul of floats with integer weights rounds its input to 8 bits (MatMulNBits at accuracy level 4).
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        open_session = partial(
            onnxruntime.InferenceSession, str(self.path), options, providers=["CPUExecutionProvider"]
        )
        try:
            return open_session()
        except Exception:  # its own types
            # 1.31 moves a DequantizeLinear of int8 behind a MaxPool with a zero point of the wrong type.
            return open_session(disabled_optimizers=["QDQPropagationTransformer"])

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        return self._session.run(None, {self._input: images})

    def integer_counts(self) -> tuple[int, int]:
        """Return how many layers are integer operations in the graph that ONNX Runtime runs, and how many there are."""
        with tempfile.TemporaryDirectory() as folder:
            self._open(Path(folder) / "optimized.onnx")
            optimized = require("onnx").load(str(Path(folder) / "optimized.onnx"))
        found = sum(node.op_type in _INTEGER for node in optimized.graph.node)
        return found, len(layers_of(read_onnx(self.path)))
