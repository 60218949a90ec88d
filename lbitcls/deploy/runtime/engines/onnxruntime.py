"""ONNX Runtime's CPU provider: the portable referee of ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lbitcls.deploy.runtime.engine import Engine
from lbitcls.deploy.runtime.metadata import require
from lbitcls.registry import ENGINES


@ENGINES.register_module(name="onnxruntime")
class ONNXRuntimeEngine(Engine):
    """ONNX Runtime's CPU provider: the portable reference; integer layers gain little speed in it."""

    name = "onnxruntime"
    package = "onnxruntime"

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        super().__init__(path, threads, precision)
        onnxruntime = require("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # lbitcls reports errors itself, once
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads use no CPU
        # Else a MatMul of floats with integer weights rounds its input to 8 bits (MatMulNBits at accuracy level 4).
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        return self._session.run(None, {self._input: images})
