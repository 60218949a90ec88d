"""Run an ONNX file on the CPU: OpenVINO (the default, fast in integers) or ONNX Runtime. No PyTorch is needed.

    engine = load("model.onnx", threads=2)
    logits = engine.predict(images)         # float32 (N, C, H, W) -> (N, K)

Both engines compute in float32 between their integer layers, unless another precision is asked for: on a CPU with
bfloat16 OpenVINO would choose that by itself, and no longer agree with the training.
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
"""OpenVINO's settings where a graph is timed or looked at."""
_FIXED_BATCH_SIZES = 4

Shape = tuple[int | None, int | None, int | None]


class Engine(ABC):
    """An ONNX model that is ready to run on the CPU. Made by `load`; threads may share one.

    Attributes:
        name: `'openvino'` or `'onnxruntime'`.
        path: the file.
        info: what the file says of itself; None for one that lbitcls did not write.
        precision: of what is not computed in integers: `'f32'` or `'bf16'`.
        threads: number of threads; None: the engine's own choice.
        input_shape: (C, H, W) of an image as the graph has it; None for a size that is free.
        output_names: of the graph.
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
            get_logger().warning("%s has no record of lbitcls: nothing says whether it is as it was written.", path)
        self.output_names = tuple(value.name for value in model.graph.output)

    def predict(self, images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """The model's outputs for a batch.

        Args:
            images: float32 (N, C, H, W), any N from 1, as the test pipeline leaves them.

        Returns:
            float32 (N, K), or a tuple of arrays where the file has several outputs.

        Raises:
            DataError: the images have another type or shape, or hold values that are not finite.
            CheckpointError: the file cannot be run on these images.
        """
        self._check(images)
        try:
            outputs = self._run(np.ascontiguousarray(images))
        except Exception as error:  # each engine has its own kinds
            raise CheckpointError(
                f"{self.name} cannot run {self.path.name} on images {images.shape}: {str(error).strip()}"
            ) from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    @abstractmethod
    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """All outputs, in arrays of their own."""

    def _check(self, images: np.ndarray) -> None:
        expected = (self.fixed_batch, *self.input_shape)
        shape = getattr(images, "shape", None)
        if not isinstance(images, np.ndarray) or shape is None:
            raise DataError(f"{self.path.name} takes a NumPy array, got {type(images).__name__}.")
        fits = len(shape) == 4 and shape[0] > 0 and all(e in (None, n) for e, n in zip(expected, shape, strict=True))
        if not fits:
            wanted = ", ".join(str(e or letter) for e, letter in zip(expected, "NCHW", strict=True))
            raise DataError(f"{self.path.name} takes images ({wanted}), got {shape}.")
        if images.dtype != np.float32:
            raise DataError(
                f"{self.path.name} takes float32 images that went through the test pipeline, got {images.dtype}; "
                "normalize them, then images.astype('float32')."
            )
        finite = np.isfinite(images)
        if not finite.all():
            first = int(finite.all((1, 2, 3)).argmin())
            raise DataError(
                f"{self.path.name} takes finite values, but images[{first}] holds NaN or infinite ones, which integer "
                "layers would hide; look at what the pipeline makes of that image."
            )


@cache
def openvino_core() -> Any:
    """OpenVINO's core, one for the process and for good.

    Its CPU plugin gives the thread that compiles an alternate stack for signals. When a second core goes before the
    first, the freed stack of one stays in use, and the next signal (the end of a data worker, say) ends the process.
    """
    return require("openvino").Core()


class OpenVINOEngine(Engine):
    """OpenVINO.

    Fixed shapes run up to 15 % faster than free ones on small batches, but each must be compiled: the first few batch
    sizes have a compiled model of their own, all others share one with a free batch size.
    """

    name = "openvino"

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        require("openvino")
        super().__init__(path, threads, precision)
        self._core = openvino_core()
        if precision == "bf16" and not can_bf16(self.name):
            raise ConfigError("this CPU does not compute in bf16; use precision='f32'.")
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            # A pinned thread waits for its core while another process has it, though others are free.
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
    """ONNX Runtime's CPU provider: the portable referee; integer layers gain little speed in it."""

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        onnxruntime = require("onnxruntime")
        super().__init__(path, threads, precision)
        if precision != "f32":
            raise ConfigError("ONNX Runtime computes in f32 on a CPU; for bf16 use engine='openvino'.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what it raises is said once, by us
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait use no CPU
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
        path: a file that `lbitcls export` wrote, or any ONNX file with one image input.
        engine: `'openvino'` or `'onnxruntime'`.
        threads: number of threads, 1 to 1024; None: the engine's own choice.
        precision: `'f32'`, or `'bf16'` (OpenVINO, on CPUs that have it) for what is not computed in integers.

    Raises:
        CheckpointError: the file is missing, or cannot be run.
        ConfigError: an unknown engine or precision, or a number of threads below 1.
        DependencyError: the engine's package is missing.

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
            f"threads is a number from 1 to {MOST_THREADS}, or None for the engine's choice; got {threads!r}."
        )
    try:
        opened = ENGINES[engine](existing_file(path), threads, precision)
    except LbitclsError:
        raise
    except Exception as error:  # each engine has its own kinds for a graph that it does not take
        raise CheckpointError(f"{engine} cannot run {path}: {str(error).strip()}") from error
    info, use = opened.info, "%s was exported for %s, and %s may compute it wrongly: use %s."
    if info is not None and info.engines is not None and engine not in info.engines:
        logger.warning(use, path, info.target, engine, " or ".join(info.engines))
    return opened


def load_usable(
    path: str | Path, engines: Iterable[str], threads: int | None = None
) -> tuple[list[Engine], dict[str, str]]:
    """Those of `engines` that run a file (tried on one black image), and why the others cannot.

    Raises:
        CheckpointError: the file is missing, or no ONNX file.
        DependencyError: the package of an engine is missing.
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
    """Those of `engines` that are installed and cannot run an exported model, with the reason.

    As long as OpenVINO, which lacks some operations, can convert the file, no engine is tried.
    """
    installed = [name for name in engines if find_spec(name) is not None]
    if "openvino" not in installed:
        return {}
    try:
        openvino_core().read_model(str(path))
    except Exception as error:  # OpenVINO has its own kinds
        others = [name for name in installed if name != "openvino"]
        return {"openvino": first_reason(error), **load_usable(path, others, threads=1)[1]}
    return {}


_TELLING = ("No conversion rule", "Unsupported ", "Conversion is failed")


def first_reason(error: BaseException) -> str:
    """What an engine says of a file, in one line: OpenVINO begins with places in its own source."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    telling = [line for sign in _TELLING for line in lines if line.startswith(sign)]
    rest = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or rest or lines or [type(error).__name__])[0][:300]


def can_bf16(engine: str) -> bool:
    """Whether `engine` computes in bfloat16 on this CPU."""
    if engine != OpenVINOEngine.name:
        return False
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _image_input(model: onnx.ModelProto, path: Path) -> tuple[Shape, int | None]:
    """(C, H, W) and N of the graph's one input, each None where it is free."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    sizes = [[d.dim_value or None for d in value.type.tensor_type.shape.dim] for value in inputs]
    if len(sizes) != 1 or len(sizes[0]) != 4:
        found = ", ".join(f"{value.name} {size}" for value, size in zip(inputs, sizes, strict=True)) or "none"
        raise CheckpointError(f"{path} is no image model: it should have one input (N, C, H, W); it has {found}.")
    types, given = require("onnx").TensorProto, inputs[0].type.tensor_type.elem_type
    if given != types.FLOAT:
        kind = types.DataType.Name(given).lower()
        raise CheckpointError(f"{path} takes {kind} images; it should take float32 ones, as the pipeline leaves them.")
    batch, channels, height, width = sizes[0]
    if any(size is not None and size > LARGEST_SIDE for size in (channels, height, width)):
        raise CheckpointError(
            f"{path} takes images (C, H, W) of {channels}, {height}, {width}; sizes go up to {LARGEST_SIDE}."
        )
    return (channels, height, width), batch
