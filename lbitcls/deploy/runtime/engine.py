"""Engines that run ONNX files on the CPU: OpenVINO (default, fast with integers) and ONNX Runtime; without PyTorch.

    engine = load("model.onnx", threads=2)
    logits = engine.predict(images)         # float32 (N, C, H, W) -> (N, K)

Both engines compute in float32 between integer layers, unless another precision is requested: on a CPU with bfloat16,
OpenVINO would choose bfloat16 by itself and no longer agree with the trained model.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.deploy.runtime.metadata import LARGEST_SIDE, ModelInfo, existing_file, info_of, read_onnx, require
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, LbitclsError, suggest
from lbitcls.utils.logging import get_logger

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger("lbitcls")
PRECISIONS = ("f32", "bf16")
MOST_THREADS = 1024
ONE_THREAD = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": "1"}
"""OpenVINO's settings for timing or inspecting a graph."""
_FIXED_BATCH_SIZES = 4

Shape = tuple[int | None, int | None, int | None]


class Engine(ABC):
    """ONNX model that is ready to run on the CPU. Created by `load`; threads may share one.

    Attributes:
        name: `'openvino'` or `'onnxruntime'`.
        path: ONNX file.
        info: Metadata in the file; None for a file that lbitcls did not write.
        precision: Precision of operations outside of integer layers: `'f32'` or `'bf16'`.
        threads: Number of threads; None: the engine's own choice.
        input_shape: (C, H, W) of an image in the graph; None for each free size.
        output_names: Names of the graph's outputs.
    """

    name: str

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        model = read_onnx(path)
        self.path = path
        self.threads = threads
        self.precision = precision
        self.info: ModelInfo | None = info_of(model, path)
        self.input_shape, self.fixed_batch = _image_input(model, path)
        if self.info is None:
            get_logger().warning("%s has no lbitcls metadata: changes to the file cannot be detected.", path)
        self.output_names = tuple(value.name for value in model.graph.output)

    def predict(self, images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Return the model's outputs for a batch.

        Args:
            images: float32 (N, C, H, W), any N ≥ 1, as the test pipeline returns them.

        Returns:
            float32 (N, K), or a tuple of arrays if the file has several outputs.

        Raises:
            DataError: The images have another type or shape, or contain values that are not finite.
            CheckpointError: The engine cannot run the file on these images.
        """
        self._check(images)
        try:
            outputs = self._run(np.ascontiguousarray(images))
        except Exception as error:  # each engine has its own exception types
            raise CheckpointError(
                f"{self.name} cannot run {self.path.name} on images {images.shape}: {str(error).strip()}"
            ) from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    @abstractmethod
    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """Return all outputs, as arrays that later calls do not change."""

    def _check(self, images: np.ndarray) -> None:
        expected = (self.fixed_batch, *self.input_shape)
        shape = getattr(images, "shape", None)
        if not isinstance(images, np.ndarray) or shape is None:
            raise DataError(f"{self.path.name} expects a NumPy array; got {type(images).__name__}.")
        fits = len(shape) == 4 and shape[0] > 0 and all(e in (None, n) for e, n in zip(expected, shape, strict=True))
        if not fits:
            wanted = ", ".join(str(e or letter) for e, letter in zip(expected, "NCHW", strict=True))
            raise DataError(f"{self.path.name} expects images ({wanted}); got {shape}.")
        if images.dtype != np.float32:
            raise DataError(
                f"{self.path.name} expects float32 images from the test pipeline; got {images.dtype}. Normalize them, "
                "then call images.astype('float32')."
            )
        finite = np.isfinite(images)
        if not finite.all():
            first = int(finite.all((1, 2, 3)).argmin())
            raise DataError(
                f"{self.path.name} expects finite values, but images[{first}] contains NaN or infinite ones, which "
                "integer layers would hide; inspect the pipeline's output for that image."
            )


@cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one per process, which is never released.

    Its CPU plugin gives the compiling thread an alternate signal stack. If a second core was released before the
    first, a freed stack would stay in use, and the next signal (the end of a data worker, say) would end the process.
    """
    return require("openvino").Core()


class OpenVINOEngine(Engine):
    """OpenVINO on the CPU.

    Fixed shapes run up to 15 % faster than free ones on small batches, but each must be compiled: the first few batch
    sizes get their own compiled model, all others share one with a free batch size.
    """

    name = "openvino"

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        require("openvino")
        super().__init__(path, threads, precision)
        self._core = openvino_core()
        if precision == "bf16" and not can_bf16(self.name):
            raise ConfigError("this CPU does not support bf16; use precision='f32'.")
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            # A pinned thread waits for its core while another process uses it, even if other cores are free.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._model = self._core.read_model(str(path))
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


class ONNXRuntimeEngine(Engine):
    """ONNX Runtime's CPU provider: the portable reference; integer layers gain little speed in it."""

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        onnxruntime = require("onnxruntime")
        super().__init__(path, threads, precision)
        if precision != "f32":
            raise ConfigError("ONNX Runtime computes in f32 on CPUs; for bf16 use engine='openvino'.")
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


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (OpenVINOEngine, ONNXRuntimeEngine)}


def load(path: str | Path, engine: str = "openvino", threads: int | None = None, precision: str = "f32") -> Engine:
    """Open an ONNX file for prediction on the CPU.

    Args:
        path: File that `lbitcls export` wrote, or any ONNX file with one image input.
        engine: `'openvino'` or `'onnxruntime'`.
        threads: Number of threads, 1 to 1024; None: the engine's own choice.
        precision: Precision of operations outside of integer layers: `'f32'`, or `'bf16'` (OpenVINO, on CPUs that
            support it).

    Raises:
        CheckpointError: The file is missing, or the engine cannot run it.
        ConfigError: The engine or precision is unknown, or the number of threads is out of range.
        DependencyError: The engine's package is missing.

    Example:
        >>> from lbitcls.deploy import export_onnx
        >>> report = export_onnx(model, "model.onnx", input_shape=(1, 8, 8))
        >>> engine = load("model.onnx", threads=2)
        >>> engine.predict(np.zeros((3, *engine.info.input_shape), np.float32)).shape
        (3, 10)
    """
    for what, value, known in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"there is no {what} {value!r}{suggest(str(value), known)} Known: {', '.join(known)}.")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise ConfigError(
            f"threads must be an integer from 1 to {MOST_THREADS}, or None for the engine's choice; got {threads!r}."
        )
    try:
        opened = ENGINES[engine](existing_file(path), threads, precision)
    except LbitclsError:
        raise
    except Exception as error:  # each engine has its own exception types
        raise CheckpointError(f"{engine} cannot run {path}: {str(error).strip()}") from error
    info, use = opened.info, "%s was exported for %s, and %s may compute it wrongly: use %s."
    if info is not None and info.engines is not None and engine not in info.engines:
        logger.warning(use, path, info.target, engine, " or ".join(info.engines))
    return opened


def load_usable(
    path: str | Path, engines: Iterable[str], threads: int | None = None
) -> tuple[list[Engine], dict[str, str]]:
    """Return those of `engines` that run a file (tried on one black image), and the reasons why the others cannot.

    Raises:
        CheckpointError: The file is missing, or is not an ONNX file.
        DependencyError: The package of an engine is missing.
    """
    read_onnx(existing_file(path))
    usable, refused = [], {}
    for name in engines:
        try:
            engine = load(path, name, threads)
            sizes = [size for size in engine.input_shape if size is not None]
            if len(sizes) == 3:  # not free
                engine.predict(np.zeros((engine.fixed_batch or 1, *sizes), np.float32))
        except CheckpointError as error:
            refused[name] = first_reason(error.__cause__ or error)
        else:
            usable.append(engine)
    return usable, refused


def cannot_run(path: str | Path, engines: Iterable[str]) -> dict[str, str]:
    """Return the installed ones of `engines` that cannot run an exported model, with the reason.

    If OpenVINO, which lacks some operations, can convert the file, no engine is tried.
    """
    installed = [name for name in engines if find_spec(name) is not None]
    if "openvino" not in installed:
        return {}
    try:
        openvino_core().read_model(str(path))
    except Exception as error:  # OpenVINO has its own exception types
        others = [name for name in installed if name != "openvino"]
        return {"openvino": first_reason(error), **load_usable(path, others, threads=1)[1]}
    return {}


_TELLING = ("No conversion rule", "Unsupported ", "Conversion is failed")


def first_reason(error: BaseException) -> str:
    """Return an engine's reason in one line: OpenVINO's messages begin with locations in its own source."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    telling = [line for sign in _TELLING for line in lines if line.startswith(sign)]
    rest = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or rest or lines or [type(error).__name__])[0][:300]


def can_bf16(engine: str) -> bool:
    """Return True if `engine` supports bfloat16 on this CPU."""
    if engine != OpenVINOEngine.name:
        return False
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _image_input(model: onnx.ModelProto, path: Path) -> tuple[Shape, int | None]:
    """Return (C, H, W) and N of the graph's only input; None for each free size."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    sizes = [[d.dim_value or None for d in value.type.tensor_type.shape.dim] for value in inputs]
    if len(sizes) != 1 or len(sizes[0]) != 4:
        found = ", ".join(f"{value.name} {size}" for value, size in zip(inputs, sizes, strict=True)) or "none"
        raise CheckpointError(f"{path} is not an image model: expected one input (N, C, H, W); got {found}.")
    types, given = require("onnx").TensorProto, inputs[0].type.tensor_type.elem_type
    if given != types.FLOAT:
        kind = types.DataType.Name(given).lower()
        raise CheckpointError(
            f"{path} expects {kind} images; it must accept float32 ones, as the pipeline returns them."
        )
    batch, channels, height, width = sizes[0]
    if any(size is not None and size > LARGEST_SIDE for size in (channels, height, width)):
        raise CheckpointError(
            f"{path} expects images (C, H, W) of {channels}, {height}, {width}; sizes must be at most {LARGEST_SIDE}."
        )
    return (channels, height, width), batch
