"""Engines that run exported models on the CPU: what they share, and how a file is opened; without PyTorch.

    engine = load("model.onnx", threads=2)
    logits = engine.predict(images)         # float32 (N, C, H, W) -> (N, K)

`lbitcls.deploy.runtime.engines` has one file for each engine. `@ENGINES.register_module(name="…")` adds one of your
own. They compute in float32 between integer layers, unless another precision is requested: on a CPU with bfloat16,
OpenVINO would choose bfloat16 by itself and no longer agree with the trained model.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lbitcls.deploy.runtime.metadata import (
    LARGEST_SIDE,
    OTHER_SUFFIXES,
    ModelInfo,
    existing_model,
    info_of,
    model_file,
    read_info,
    read_onnx,
    require,
)
from lbitcls.registry import ENGINES
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, LbitclsError, suggest
from lbitcls.utils.logging import get_logger

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger("lbitcls")
PRECISIONS = ("f32", "bf16")
MOST_THREADS = 1024
FOREIGN = "openvino"
"""Engine of ONNX files that lbitcls did not write."""
PORTABLE = "onnxruntime"
"""Engine of ONNX files whose own engines open something else: of a page's model."""
PAGES = "onnxruntime-web"
"""Engine of folders."""

Shape = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class Description:
    """Facts about an exported model that its file records.

    Attributes:
        info: Metadata; None for a file that lbitcls did not write.
        input_shape: (C, H, W) of an image; None for each free size.
        fixed_batch: Number of images of a batch; None: any.
        output_names: Names of the outputs.
    """

    info: ModelInfo | None
    input_shape: Shape
    fixed_batch: int | None
    output_names: tuple[str, ...]


class Engine(ABC):
    """Exported model that is ready to run on the CPU. Created by `load`; threads may share one.

    Attributes:
        name: Name under which it is registered, such as `'openvino'`.
        package: Package that must be importable.
        extra: Extra of lbitcls that installs it.
        suffixes: Suffixes of the files that it opens; an empty one stands for a folder.
        precisions: Precisions that it supports: `'f32'`, `'bf16'`.
        targets: Targets whose files it computes as intended, besides those that name it as a judge.
        is_timed: False if it only checks files, so that its times mean nothing.
        path: File or folder.
        info: Metadata in the file; None for a file that lbitcls did not write.
        precision: Precision of operations outside of integer layers.
        threads: Number of threads; None: the engine's own choice.
        input_shape: (C, H, W) of an image in the graph; None for each free size.
        fixed_batch: Number of images of a batch; None: any.
        output_names: Names of the graph's outputs.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str] = "deploy"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    precisions: ClassVar[tuple[str, ...]] = ("f32",)
    targets: ClassVar[tuple[str, ...]] = ()
    is_timed: ClassVar[bool] = True

    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        self.check_installed()
        if precision not in self.precisions:
            raise ConfigError(f"{self.name} computes in f32 on CPUs; for {precision} use engine='openvino'.")
        self.path = path
        self.threads = threads
        self.precision = precision
        found = self._describe(path)
        self.info, self.input_shape, self.fixed_batch = found.info, found.input_shape, found.fixed_batch
        self.output_names = found.output_names
        if self.info is None:
            get_logger().warning("%s has no lbitcls metadata: changes to the file cannot be detected.", path)

    @classmethod
    def supports(cls, precision: str) -> bool:
        """Return True if the engine supports a precision on this CPU."""
        return precision in cls.precisions

    @classmethod
    def check_installed(cls) -> None:
        """Raise `DependencyError` if something that the engine needs is missing."""
        require(cls.package, cls.extra)

    @classmethod
    def opens(cls, path: Path) -> bool:
        """Return True unless a file's suffix belongs to other engines."""
        suffix = "" if path.is_dir() else path.suffix.lower()
        return suffix in cls.suffixes or (".onnx" in cls.suffixes and suffix not in ("", *OTHER_SUFFIXES))

    @classmethod
    def refusal(cls, path: Path) -> str | None:
        """Return why the engine cannot run an exported model, as far as a quick look tells; None: it may run it."""
        return None

    @property
    def version(self) -> str:
        """Version of the engine's package."""
        try:
            return version(self.package.replace("_", "-"))
        except PackageNotFoundError:
            return str(getattr(require(self.package, self.extra), "__version__", "unknown"))

    def integer_counts(self) -> tuple[int, int] | None:
        """Return how many convolutions and linear layers run in integers, and how many there are.

        The engine itself says so; None if it cannot.
        """
        return None

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

    def _describe(self, path: Path) -> Description:
        """Read a file's description; here: of an ONNX file."""
        model = read_onnx(path)
        names = tuple(value.name for value in model.graph.output)
        return Description(info_of(model, path), *_image_input(model, path), names)

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


def load(path: str | Path, engine: str | None = None, threads: int | None = None, precision: str = "f32") -> Engine:
    """Open an exported model for prediction on the CPU.

    Args:
        path: File or folder that `lbitcls export` wrote, or any ONNX file with one image input. Of a folder, engines
            of files open the file inside.
        engine: Name of an engine; None: the first of those that judge files of its target.
        threads: Number of threads, 1 to 1024; None: the engine's own choice.
        precision: Precision of operations outside of integer layers: `'f32'`, or `'bf16'` (OpenVINO, on CPUs that
            support it).

    Raises:
        CheckpointError: The file is missing, or the engine cannot run it.
        ConfigError: The engine or precision is unknown, the engine is for other files, or the number of threads is out
            of range.
        DependencyError: The engine's package is missing.

    Example:
        >>> from lbitcls.deploy import export_model
        >>> report = export_model(model, "model.onnx", input_shape=(1, 8, 8))
        >>> engine = load("model.onnx", threads=2)
        >>> engine.predict(np.zeros((3, *engine.info.input_shape), np.float32)).shape
        (3, 10)
    """
    if precision not in PRECISIONS:
        near = suggest(str(precision), PRECISIONS)
        raise ConfigError(f"there is no precision {precision!r}{near} Known: {', '.join(PRECISIONS)}.")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise ConfigError(
            f"threads must be an integer from 1 to {MOST_THREADS}, or None for the engine's choice; got {threads!r}."
        )
    kind = None if engine is None else find_engine(engine)
    path = existing_model(path)
    kind = kind or find_engine(default_engine(path))
    path = path if kind.opens(path) else model_file(path)
    if not kind.opens(path):
        raise ConfigError(f"{kind.name} opens {_listed(kind.suffixes)}, not {path}; use {default_engine(path)}.")
    try:
        opened = kind(path, threads, precision)
    except LbitclsError:
        raise
    except Exception as error:  # each engine has its own exception types
        raise CheckpointError(f"{kind.name} cannot run {path}: {first_reason(error)}") from error
    info, use = opened.info, "%s was exported for %s, and %s may compute it wrongly: use %s."
    if info is not None and kind.name not in (info.engines or [kind.name]) and info.target not in kind.targets:
        logger.warning(use, path, info.target, kind.name, " or ".join(info.engines or ()))
    return opened


def find_engine(name: str) -> type[Engine]:
    """Return the engine registered as `name`.

    Raises:
        ConfigError: There is no such engine, or the registered object is not an `Engine`.
    """
    kind = ENGINES.find(str(name))
    if not (isinstance(kind, type) and issubclass(kind, Engine)):
        raise ConfigError(f"the engine '{name}' is {kind!r}; it must be a subclass of {__name__}.Engine.")
    return kind


def default_engine(path: Path) -> str:
    """Return the name of the first engine that judges an exported model, or else one that opens it.

    Raises:
        CheckpointError: The file is not complete, or its suffix is that of another target.
    """
    info, suffix = read_info(path), "" if path.is_dir() else path.suffix.lower()
    found = opening(path, [] if info is None else info.engines or [])
    if found:
        return found[0]
    if suffix in OTHER_SUFFIXES:
        if info is None:
            raise CheckpointError(
                f"{path} is not complete, or lbitcls did not write it: copy it again, or export the model again."
            )
        raise CheckpointError(f"{path} was exported for {info.target}: give it the suffix of such files again.")
    if suffix == "":
        return PAGES
    return FOREIGN if info is None or not info.engines else PORTABLE


def opening(path: Path, engines: Iterable[str]) -> list[str]:
    """Return those of the engines that open a file with this suffix; engines that are not registered count as such."""
    kinds = {name: ENGINES.get(name) for name in engines}
    return [name for name, kind in kinds.items() if kind is None or kind.opens(path)]


def _listed(suffixes: Sequence[str]) -> str:
    return " and ".join(f"{suffix} files" if suffix else "folders" for suffix in suffixes)


def load_usable(
    path: str | Path, engines: Iterable[str], threads: int | None = None
) -> tuple[list[Engine], dict[str, str]]:
    """Return those of `engines` that run a file (tried on one black image), and the reasons why the others cannot.

    Raises:
        CheckpointError: The file is missing, or is not an exported model.
        DependencyError: The package of an engine is missing.
    """
    read_info(existing_model(path))
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

    If none of them refuses it at once (OpenVINO lacks some operations), none is tried.
    """
    installed = [name for name in engines if find_spec(find_engine(name).package) is not None]
    refused = {name: reason for name in installed if (reason := find_engine(name).refusal(Path(path))) is not None}
    others = [name for name in installed if name not in refused] if refused else []
    return {**refused, **(load_usable(path, others, threads=1)[1] if others else {})}


_TELLING = ("No conversion rule", "Unsupported ", "Conversion is failed")


def first_reason(error: BaseException) -> str:
    """Return an engine's reason in one line: OpenVINO's messages begin with locations in its own source."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    telling = [line for sign in _TELLING for line in lines if line.startswith(sign)]
    rest = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or rest or lines or [type(error).__name__])[0][:300]


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
