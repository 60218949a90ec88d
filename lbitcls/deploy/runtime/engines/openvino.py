"""OpenVINO on the CPU: the default engine of ONNX files, fast with integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.engine import Engine, first_reason
from lbitcls.deploy.runtime.metadata import require
from lbitcls.registry import ENGINES
from lbitcls.utils.errors import ConfigError

ONE_THREAD = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": "1"}
"""OpenVINO's settings for timing or inspecting a graph."""
_FIXED_BATCH_SIZES = 4


@cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one per process, which is never released.

    Its CPU plugin gives the compiling thread an alternate signal stack. If a second core was released before the
    first, a freed stack would stay in use, and the next signal (the end of a data worker, say) would end the process.
    """
    return require("openvino").Core()


def _read_model(path: Path) -> Any:
    """Return OpenVINO's form of an ONNX file, which `onnx` checks before: a node that lacks inputs ends OpenVINO."""
    _check(path)
    return openvino_core().read_model(str(path))


def _check(path: Path) -> None:
    """Raise an error if an ONNX file is not valid; inputs and outputs may lack their shapes."""
    onnx = require("onnx")
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        if "'shape'" not in str(error):
            raise
        model = onnx.load(str(path), load_external_data=False)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)


@ENGINES.register_module(name="openvino")
class OpenVINOEngine(Engine):
    """OpenVINO on the CPU.

    Fixed shapes run up to 15 % faster than free ones on small batches, but each must be compiled: the first few batch
    sizes get their own compiled model, all others share one with a free batch size.
    """

    name = "openvino"
    package = "openvino"
    precisions = ("f32", "bf16")

    @classmethod
    def supports(cls, precision: str) -> bool:
        """Return True if this CPU supports a precision."""
        return precision != "bf16" or "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    @classmethod
    def refusal(cls, path: Path) -> str | None:
        """Return why OpenVINO cannot convert a file."""
        try:
            _read_model(path)
        except Exception as error:  # OpenVINO has its own exception types
            return first_reason(error)
        return None

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        super().__init__(path, threads, precision)
        self._core = openvino_core()
        if not self.supports(precision):
            raise ConfigError("this CPU does not support bf16; use precision='f32'.")
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            # A pinned thread waits for its core while another process uses it, even if other cores are free.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._model = _read_model(path)
        self._requests: dict[int | None, Any] = {}
        self._lock = Lock()

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with self._lock:
            return list(self._request(len(images)).infer([images], share_inputs=True).values())

    def _request(self, batch: int) -> Any:
        fixed = batch in self._requests or len(self._requests) < _FIXED_BATCH_SIZES
        key = batch if fixed else None
        if key not in self._requests:
            model = self._model.clone()
            model.reshape([-1 if size is None else size for size in (key, *self.input_shape)])
            self._requests[key] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        return self._requests[key]
