"""Metadata of an exported model: one JSON text in its file, so that the file alone suffices to run the model.

An ONNX file has it among its properties; reading it needs the package `onnx`, but not PyTorch. Other files have it
behind their last byte, where their engines ignore it:

    content, JSON text, length of the text (8 bytes, little-endian), SHA-256 of all that (64 hexadecimal digits), MARK
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from lbitcls.utils.errors import CheckpointError, DependencyError
from lbitcls.utils.files import MODEL_OF_FOLDER, suggest_path
from lbitcls.utils.jsontext import json_text

if TYPE_CHECKING:
    import onnx

KEY = "lbitcls"
"""Metadata property of the ONNX file that contains the JSON text."""
OTHER_SUFFIXES = (".tflite", ".pte")
"""Suffixes of exported models that are not ONNX files."""
MARK = b"lbitcls\x01"
"""Last bytes of a file with metadata behind its content."""
SEAL = "lbitcls_sha256"
"""Metadata property that contains the SHA-256 of the file's bytes, computed with zeros in its place."""
FORMAT = 1
MOST_CLASSES = 2**20
LARGEST_SIDE = 2**13  # of images, in pixels
_MOST_ENTRIES = 2**16  # of a list, except class names
_DEEPEST = 16  # levels of nested lists and dicts
_LONGEST = {"config": 2**24}  # characters of a text; of other texts:
_LONG = 1000
_COUNTED = ("num_classes", "out_channels", "feature_shapes")  # have their own bounds
_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")
_SHOWN = 200  # characters of a wrong field in a message
_BLANK = "0" * 64
_TELEMETRY = "openvino_telemetry"
_SEALED = re.compile(SEAL.encode() + rb"\x12\x40([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Facts about an exported model.

    Attributes:
        version: Version of lbitcls that wrote the file.
        part: `'model'` (logits) or `'backbone'` (features).
        input_shape: (C, H, W) of an image.
        num_classes: K, or None for a backbone.
        classes: Class names, in label order; None if unknown.
        pipeline: Test pipeline of the config as plain data: turns a file into an input image.
        method: Method of the quantized layers, `'LSQ'`; `'DSQ+LSQ'` for several; `'float'` without quantized layers.
        bits: Bits of most quantized layers, `'W4A4'`; `'float'` without quantized layers.
        layers: One dict per quantized layer: `name`, `kind`, `method`, `weight_bits`, `input_bits`, `container`,
            `packed`.
        residual_bits: Bits of the skip connections; None if they stay float.
        target: Name of the target that the model was exported for: `'cpu'`, `'tensorrt'`, or your own.
        engines: Names of the engines that compute it as intended; None: not recorded.
        config: Text of the config.
        out_channels: Channels of a backbone's features.
        feature_shapes: Shapes of a backbone's features, without N.
        format: Version of this metadata format.
    """

    version: str
    part: str = "model"
    input_shape: tuple[int, int, int]
    num_classes: int | None = None
    classes: list[str] | None = None
    pipeline: list[dict[str, Any]]
    method: str = "float"
    bits: str = "float"
    layers: list[dict[str, Any]]
    residual_bits: int | None = None
    target: str = "cpu"
    engines: list[str] | None = None
    config: str = ""
    out_channels: list[int] | None = None
    feature_shapes: list[list[int]] | None = None
    format: int = FORMAT

    @property
    def is_float(self) -> bool:
        """True if no layer is quantized."""
        return not self.layers

    @property
    def quantization(self) -> str:
        """Method and bits, `'LSQ W4A4'`, or `'float'`."""
        return "float" if self.is_float else f"{self.method} {self.bits}"


def write_info(model: onnx.ModelProto, info: ModelInfo) -> None:
    """Write `info` into the metadata of `model`, replacing earlier metadata of lbitcls."""
    for place in reversed([i for i, entry in enumerate(model.metadata_props) if entry.key == SEAL]):
        del model.metadata_props[place]  # seal of the earlier content
    text = json_text(asdict(info), ensure_ascii=False)
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = text
            return
    model.metadata_props.add(key=KEY, value=text)


def sealed(model: onnx.ModelProto) -> bytes:
    """Return the bytes of `model`'s file, with the digest by which `read_onnx` detects changes."""
    model.metadata_props.add(key=SEAL, value=_BLANK)
    content = model.SerializeToString(deterministic=True)
    place = _seal_in(content)
    assert place is not None
    return content[: place[0]] + hashlib.sha256(content).hexdigest().encode() + content[place[1] :]


def _seal_in(content: bytes) -> tuple[int, int] | None:
    """Return the digest's start and end in a file: the last place that looks like one, as metadata comes last."""
    places = [found.span(1) for found in _SEALED.finditer(content)]
    return places[-1] if places else None


def _check_seal(path: Path) -> None:
    content = path.read_bytes()
    place = _seal_in(content)
    if place is None:
        return  # written by another tool, or by an lbitcls that wrote no digests yet
    given = content[place[0] : place[1]].decode()
    blank = content[: place[0]] + _BLANK.encode() + content[place[1] :]
    if given != hashlib.sha256(blank).hexdigest():
        raise _changed(path, f"; to use a file that you changed on purpose, remove its metadata entry {SEAL}")


def with_trailer(content: bytes, info: ModelInfo) -> bytes:
    """Return the bytes of a file that is not ONNX, with `info` and a digest of the whole behind them."""
    text = json_text(asdict(info), ensure_ascii=False).encode()
    body = content + text + len(text).to_bytes(8, "little")
    return body + hashlib.sha256(body).hexdigest().encode() + MARK


def _read_trailer(path: Path) -> ModelInfo | None:
    """Return the metadata behind a file's content; None if there are none."""
    content = path.read_bytes()
    if not content.endswith(MARK):
        return None
    body, digest = content[: -len(MARK) - 64], content[-len(MARK) - 64 : -len(MARK)]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise _changed(path)
    length = int.from_bytes(body[-8:], "little")
    if not 0 < length <= len(body) - 8:
        raise _changed(path)
    return _parsed(body[-8 - length : -8].decode("utf-8", "replace"), path)


def _changed(path: Path, remedy: str = "") -> CheckpointError:
    return CheckpointError(
        f"{path} has changed since lbitcls wrote it: it is damaged, or another tool has changed it. Copy it again, or "
        f"export the model again{remedy}."
    )


def read_info(path: str | Path) -> ModelInfo | None:
    """Return the metadata of an exported model; None for a file that lbitcls did not write.

    Raises:
        CheckpointError: The file is missing, not an exported model or damaged, or from a newer lbitcls.
        DependencyError: The package `onnx` is missing.
    """
    path = existing_model(path)
    model = model_file(path)
    if model.suffix.lower() in OTHER_SUFFIXES:
        return _read_trailer(model)
    return info_of(read_onnx(model), model)


def info_of(model: onnx.ModelProto, path: str | Path) -> ModelInfo | None:
    """Return the metadata of a model that was read from `path`, as `read_info` does."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    return None if text is None else _parsed(text, path)


def _parsed(text: str, path: str | Path) -> ModelInfo:
    """Return the metadata in a JSON text, checked."""
    try:
        record = json.loads(text, parse_constant=_no_number)
        if record["format"] > FORMAT:
            raise CheckpointError(
                f"{path} was written by lbitcls {str(record.get('version'))[:_SHOWN]}, newer than the installed one: "
                "upgrade lbitcls."
            )
        types = get_type_hints(ModelInfo)
        known = {name: _as_type(name, value, types[name]) for name, value in record.items() if name in types}
        info = ModelInfo(**known)
        _check_bounds(info)
        return info
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the lbitcls metadata in {path} is damaged ({str(error)[:_SHOWN]}); export the model again."
        ) from error


def _no_number(text: str) -> Any:
    raise ValueError(f"it contains the number {text}")


def _check_bounds(info: ModelInfo) -> None:
    """Raise ValueError if a number, a length or a depth is implausible for an image model."""
    channels, *sides = info.input_shape
    _check_counts("input_shape", (channels, *sides), LARGEST_SIDE)
    if info.num_classes is not None:
        _check_counts("num_classes", (info.num_classes,), MOST_CLASSES)
    if None not in (info.classes, info.num_classes) and len(info.classes or ()) != info.num_classes:
        raise ValueError(f"it has {len(info.classes or ())} class names for {info.num_classes} classes")
    if info.residual_bits is not None:
        _check_counts("residual_bits", (info.residual_bits,), 32)
    _check_counts("out_channels", info.out_channels or (), MOST_CLASSES)
    for shape in info.feature_shapes or ():
        _check_counts("feature_shapes", shape, MOST_CLASSES)
    for name, value in vars(info).items():
        most = MOST_CLASSES if name == "classes" else _MOST_ENTRIES
        _check_plain(name, value, most, _LONGEST.get(name, _LONG))


def _check_counts(name: str, values: Iterable[int], most: int) -> None:
    for value in values:
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most}, but is {str(value)[:20]}")


def _check_plain(name: str, value: Any, most: int, longest: int, depth: int = 0) -> None:
    """Raise ValueError for implausible plain data: numbers beyond image sizes, long texts and lists, deep nesting."""
    if isinstance(value, str):
        value.encode()  # raises for half a surrogate pair
        if len(value) > longest:
            raise ValueError(f"{name} contains a text of {len(value)} characters")
    elif isinstance(value, (int, float)):
        if not math.isfinite(value) or (abs(value) > LARGEST_SIDE and name not in _COUNTED):
            raise ValueError(f"{name} contains the number {str(value)[:20]}, which is beyond {LARGEST_SIDE}")
    elif isinstance(value, (list, tuple, dict)):
        if depth == _DEEPEST:
            raise ValueError(f"{name} has lists nested over {_DEEPEST} deep")
        if len(value) > most:
            raise ValueError(f"{name} contains a list of {len(value)} entries")
        items = [*value, *value.values()] if isinstance(value, dict) else value
        for item in items:
            _check_plain(name, item, most, longest, depth + 1)


def _as_type(name: str, value: Any, expected: Any) -> Any:
    """Return a field's value from JSON, as a tuple instead of a list if that is `expected`.

    Raises:
        TypeError: The value of the field `name` has another type.
    """
    value = tuple(value) if get_origin(expected) is tuple and isinstance(value, list) else value
    if not _fits(value, expected):
        raise TypeError(f"{name} must be {ModelInfo.__annotations__[name]}, but is {value!r}"[:_SHOWN])
    return value


def _fits(value: Any, expected: Any) -> bool:
    """Return True if `value` has the type `expected`: a plain type, None, a union, or a list, tuple or dict of such."""
    inner = get_args(expected)
    kind = get_origin(expected) or expected
    if expected is Any:
        return True
    if kind is UnionType:
        return any(_fits(value, one) for one in inner)
    if type(value) is not kind:
        return False
    if kind is list:
        return all(_fits(item, inner[0]) for item in value)
    if kind is dict:
        return all(_fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items())
    return kind is not tuple or (len(value) == len(inner) and all(map(_fits, value, inner)))


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """Return the model in the ONNX file `path`.

    Raises:
        CheckpointError: The file is missing, is not an ONNX file, or has changed since lbitcls wrote it.
        DependencyError: The package `onnx` is missing.
    """
    path = existing_file(path)
    onnx = require("onnx")
    _check_seal(path)
    try:
        model = onnx.load(str(path))
    except OSError as error:  # external data is missing
        raise CheckpointError(f"{path} cannot be read as an ONNX model: {str(error)[:_SHOWN]}") from error
    except Exception as error:  # protobuf's own exception types
        raise _no_model(path) from error
    if not model.ir_version or not model.graph.output:
        raise _no_model(path)
    return model


def _no_model(path: Path) -> CheckpointError:
    """Return the error for a file that does not contain an ONNX model with a graph."""
    how = "export the model again"
    if path.suffix.lower() in _CHECKPOINTS:
        how = f"export the checkpoint first: lbitcls export CONFIG {path} --out model.onnx"
    return CheckpointError(
        f"{path} is not an ONNX model, or is damaged; expected a file that `lbitcls export` wrote, or another ONNX "
        f"image model. {how[0].upper()}{how[1:]}."
    )


def require(package: str, extra: str = "deploy") -> ModuleType:
    """Import an optional package and return it.

    Args:
        package: Name of the package.
        extra: Extra of lbitcls that installs it.

    Raises:
        DependencyError: The package is not installed.
    """
    try:
        with _untold():
            return import_module(package)
    except ImportError as error:
        raise DependencyError(
            f"the package {package} is required but cannot be imported ({error}): pip install lbitcls[{extra}]."
        ) from error


@contextmanager
def _untold() -> Iterator[None]:
    """Hide OpenVINO's telemetry, which would report each import to a server from a process that it starts.

    Without that package OpenVINO does without it.
    """
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's mark of a module that cannot be imported
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


def model_file(path: Path) -> Path:
    """Return the file that contains the model: `path` itself, or `model.onnx` in a folder."""
    return path / MODEL_OF_FOLDER if path.is_dir() else path


def existing_model(path: str | Path) -> Path:
    """Return the path of an exported model; raise `CheckpointError`, with the nearest name, if it is none."""
    path = Path(path).expanduser()
    if path.is_dir() and model_file(path).is_file():
        return path
    return existing_file(path)


def existing_file(path: str | Path) -> Path:
    """Return `path`; raise `CheckpointError`, with the nearest name in its folder, if it is not a file."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder without {MODEL_OF_FOLDER}, so not an exported model.")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a regular file; name an exported model.")
    if not path.is_file():
        kind = "ONNX file" if path.suffix.lower() == ".onnx" else "exported model"
        raise CheckpointError(f"there is no {kind} {path}{suggest_path(path, f'*{path.suffix}')}")
    return path
