"""Apache TVM: compiles the ONNX files of the target `cpu` for the CPU; convolutions run in float."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.engine import Engine
from lbitcls.deploy.runtime.metadata import read_onnx, require
from lbitcls.deploy.runtime.weighted import layers_of, refuse_packed
from lbitcls.registry import ENGINES

_PRODUCTS = ("relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.nn.conv1d", "relax.matmul")


@ENGINES.register_module(name="tvm")
class TVMEngine(Engine):
    """TVM's Relax compiler with LLVM, not tuned, so its times say little; the number of threads is its own."""

    name = "tvm"
    targets = ("cpu",)
    package = "tvm"
    extra = "engines"

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        super().__init__(path, threads, precision)
        self._tvm = require("tvm", self.extra)
        from tvm import relax
        from tvm.relax.frontend.onnx import from_onnx

        self._model = read_onnx(path)
        refuse_packed(self._model, "TVM")
        self._module = from_onnx(self._model, keep_params_in_input=False)
        compiled = self._tvm.compile(self._module, target="llvm")
        self._machine = relax.VirtualMachine(compiled, self._tvm.cpu())
        self._lock = Lock()

    @property
    def version(self) -> str:
        """Version of TVM."""
        return str(self._tvm.__version__)

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with self._lock:
            found = self._machine["main"](self._tvm.runtime.tensor(images))
            outputs = [found] if hasattr(found, "numpy") else list(found)
            return [output.numpy() for output in outputs]

    def integer_counts(self) -> tuple[int, int]:
        """Return how many layers multiply integers in the program that TVM compiles, and how many layers there are."""
        from tvm import relax

        kinds: list[str] = []

        def visit(call: Any) -> None:
            if isinstance(call, relax.Call) and getattr(call.op, "name", "") in _PRODUCTS:
                kinds.append(str(call.args[0].ty.dtype))

        relax.analysis.post_order_visit(self._module["main"], visit)
        return sum("int" in kind for kind in kinds), len(layers_of(self._model))
