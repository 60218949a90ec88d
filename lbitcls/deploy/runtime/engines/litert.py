"""LiteRT's interpreter, formerly TensorFlow Lite: runs `.tflite` files, by its XNNPACK delegate or its own kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np

from lbitcls.deploy.runtime.engine import Description, Engine
from lbitcls.deploy.runtime.metadata import read_info, require
from lbitcls.deploy.runtime.silence import silent
from lbitcls.registry import ENGINES
from lbitcls.utils.errors import CheckpointError

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


@ENGINES.register_module(name="litert")
class LiteRTEngine(Engine):
    """LiteRT with the XNNPACK delegate, its default."""

    name = "litert"
    package = "ai_edge_litert"
    extra = "litert"
    suffixes = (".tflite",)
    targets = ("litert",)
    kernels: ClassVar[str] = "AUTO"
    """Which kernels run, by LiteRT's name: those of its default delegate, XNNPACK, where it has one."""

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        self._lock = Lock()
        self._allocated: tuple[int, ...] | None = None
        super().__init__(path, threads, precision)

    def _describe(self, path: Path) -> Description:
        info, runtime = read_info(path), require("ai_edge_litert.interpreter", self.extra)
        kernels = getattr(runtime.OpResolverType, self.kernels)
        self._interpreter: Any = runtime.Interpreter(
            model_content=path.read_bytes(), num_threads=self.threads, experimental_op_resolver_type=kernels
        )
        inputs = self._interpreter.get_input_details()
        shape = inputs[0]["shape_signature"] if len(inputs) == 1 else []
        if len(shape) != 4 or inputs[0]["dtype"] is not np.float32:
            raise CheckpointError(f"{path} is not an image model: expected one float32 input (N, H, W, C).")
        batch, height, width, channels = (None if size < 0 else int(size) for size in shape)
        names = tuple(self._interpreter.get_signature_runner().get_output_details())
        return Description(info, (channels, height, width), batch, names)

    def integer_counts(self) -> tuple[int, int] | None:
        """Return how many convolutions and linear layers have integer inputs, and how many there are."""
        with self._lock:
            types = {tensor["index"]: tensor["dtype"] for tensor in self._interpreter.get_tensor_details()}
            operations = self._interpreter._get_ops_details()  # the format's operations, delegated or not
        inputs = [types[operation["inputs"][0]] for operation in operations if operation["op_name"] in _LAYERS]
        return sum(np.issubdtype(kind, np.integer) for kind in inputs), len(inputs)

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with self._lock:
            taken = self._interpreter.get_input_details()[0]
            arranged = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
            if self._allocated != arranged.shape:
                self._interpreter.resize_tensor_input(taken["index"], arranged.shape)
                with silent():  # it announces its delegate
                    self._interpreter.allocate_tensors()
                self._allocated = arranged.shape
            self._interpreter.set_tensor(taken["index"], arranged)
            self._interpreter.invoke()
            outputs = [self._interpreter.get_tensor(o["index"]) for o in self._interpreter.get_output_details()]
            return [a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for a in outputs]


@ENGINES.register_module(name="litert_builtin")
class LiteRTBuiltinEngine(LiteRTEngine):
    """LiteRT with the interpreter's own fast kernels instead of XNNPACK's."""

    name = "litert_builtin"
    kernels = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"


@ENGINES.register_module(name="litert_reference")
class LiteRTReferenceEngine(LiteRTEngine):
    """LiteRT with the interpreter's reference kernels: slow, and the definition of what the others compute."""

    name = "litert_reference"
    is_timed = False
    kernels = "BUILTIN_REF"
