"""An exported model's record of itself: one JSON text in its metadata, so that the file alone suffices to run it.

Reading it needs the package `onnx`, not PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from lbitcls.utils.errors import CheckpointError, DependencyError, suggest
from lbitcls.utils.jsontext import json_text

if TYPE_CHECKING:
    import onnx

KEY = "lbitcls"
"""The metadata property of the ONNX file that holds the JSON text."""
SEAL = "lbitcls_sha256"
"""The metadata property that holds the SHA-256 of the file's bytes, computed with zeros in its place."""
FORMAT = 1
MOST_CLASSES = 2**20
LARGEST_SIDE = 2**13  # of images, in pixels
_MOST_ENTRIES = 2**16  # of a list that is not of classes
_DEEPEST = 16  # lists and dicts within each other
_LONGEST = {"config": 2**24}  # characters of a text, else:
_LONG = 1000
_COUNTED = ("num_classes", "out_channels", "feature_shapes")  # which have bounds of their own
_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")
_SHOWN = 200  # characters of a field that is wrong
_BLANK = "0" * 64
_SEALED = re.compile(SEAL.encode() + rb"\x12\x40([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Facts about an exported model.

    Attributes:
        version: of lbitcls, that wrote the file.
        part: `'model'` (logits) or `'backbone'` (features).
        input_shape: (C, H, W) of an image.
        num_classes: K, or None for a backbone.
        classes: names of the classes, in order of their labels, or None where nobody knows them.
        pipeline: the config's test pipeline, as plain data: what makes an image from a file.
        method: of the quantized layers, `'LSQ'`, `'DSQ+LSQ'` where there are several, `'float'` without any.
        bits: of most layers, `'W4A4'`; `'float'` without any.
        layers: a dict for each quantized layer: `name`, `kind`, `method`, `weight_bits`, `input_bits`, `container`,
            `packed`.
        residual_bits: of the skip connections, or None where they stay float.
        target: name of the target that the file was made for: `'cpu'`, `'tensorrt'`, or one's own.
        engines: names of the engines that compute it as it was meant; None: it does not say.
        config: the config's text.
        out_channels: of a backbone's features.
        feature_shapes: of a backbone's features, without N.
        format: of this record.
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
        """Whether no layer is quantized."""
        return not self.layers

    @property
    def quantization(self) -> str:
        """Method and bits, `'LSQ W4A4'`, or `'float'`."""
        return "float" if self.is_float else f"{self.method} {self.bits}"


def write_info(model: onnx.ModelProto, info: ModelInfo) -> None:
    """Put `info` into the metadata of `model`, in the place of what was there."""
    for place in reversed([i for i, entry in enumerate(model.metadata_props) if entry.key == SEAL]):
        del model.metadata_props[place]  # of what the file was before
    text = json_text(asdict(info), ensure_ascii=False)
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = text
            return
    model.metadata_props.add(key=KEY, value=text)


def sealed(model: onnx.ModelProto) -> bytes:
    """The bytes of the file of `model`, with the digest by which `read_onnx` sees whether they have changed."""
    model.metadata_props.add(key=SEAL, value=_BLANK)
    content = model.SerializeToString(deterministic=True)
    place = _seal_in(content)
    assert place is not None
    return content[: place[0]] + hashlib.sha256(content).hexdigest().encode() + content[place[1] :]


def _seal_in(content: bytes) -> tuple[int, int] | None:
    """Where the digest stands in a file: the last place that looks like it, as metadata comes last."""
    places = [found.span(1) for found in _SEALED.finditer(content)]
    return places[-1] if places else None


def _check_seal(path: Path) -> None:
    content = path.read_bytes()
    place = _seal_in(content)
    if place is None:
        return  # of another tool, or of an lbitcls before there were digests
    given = content[place[0] : place[1]].decode()
    blank = content[: place[0]] + _BLANK.encode() + content[place[1] :]
    if given != hashlib.sha256(blank).hexdigest():
        raise CheckpointError(
            f"{path} has changed since lbitcls wrote it: it is damaged, or another tool has changed it. Copy it again, "
            f"or export the model again; a file that was changed on purpose is read without its metadata entry {SEAL}."
        )


def read_info(path: str | Path) -> ModelInfo | None:
    """What the ONNX file `path` says of itself; None for a file that lbitcls did not write.

    Raises:
        CheckpointError: the file is missing or no ONNX file, or its record is damaged or of a newer lbitcls.
        DependencyError: the package `onnx` is missing.
    """
    return info_of(read_onnx(path), path)


def info_of(model: onnx.ModelProto, path: str | Path) -> ModelInfo | None:
    """As `read_info`, of a model that was read from `path`."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if text is None:
        return None
    try:
        record = json.loads(text, parse_constant=_no_number)
        if record["format"] > FORMAT:
            raise CheckpointError(
                f"{path} was written by lbitcls {str(record.get('version'))[:_SHOWN]}, which is newer than this one: "
                "upgrade lbitcls."
            )
        types = get_type_hints(ModelInfo)
        known = {name: _as_type(name, value, types[name]) for name, value in record.items() if name in types}
        info = ModelInfo(**known)
        _check_bounds(info)
        return info
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the record of lbitcls in {path} is damaged ({str(error)[:_SHOWN]}); export the model again."
        ) from error


def _no_number(text: str) -> Any:
    raise ValueError(f"it has the number {text}")


def _check_bounds(info: ModelInfo) -> None:
    """Raise ValueError where a number, a length or a depth is none that a model of images has."""
    channels, *sides = info.input_shape
    _check_counts("input_shape", (channels, *sides), LARGEST_SIDE)
    if info.num_classes is not None:
        _check_counts("num_classes", (info.num_classes,), MOST_CLASSES)
    if None not in (info.classes, info.num_classes) and len(info.classes or ()) != info.num_classes:
        raise ValueError(f"it has {len(info.classes or ())} classes' names for {info.num_classes} classes")
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
            raise ValueError(f"{name} should be from 1 to {most}, and is {str(value)[:20]}")


def _check_plain(name: str, value: Any, most: int, longest: int, depth: int = 0) -> None:
    """Raise ValueError for plain data that no record has: numbers beyond images' sizes, long texts and lists, depth."""
    if isinstance(value, str):
        value.encode()  # half a character raises
        if len(value) > longest:
            raise ValueError(f"{name} has a text of {len(value)} characters")
    elif isinstance(value, (int, float)):
        if not math.isfinite(value) or (abs(value) > LARGEST_SIDE and name not in _COUNTED):
            raise ValueError(f"{name} has the number {str(value)[:20]}, which is beyond {LARGEST_SIDE}")
    elif isinstance(value, (list, tuple, dict)):
        if depth == _DEEPEST:
            raise ValueError(f"{name} has lists within each other, over {_DEEPEST} deep")
        if len(value) > most:
            raise ValueError(f"{name} has a list of {len(value)} entries")
        items = [*value, *value.values()] if isinstance(value, dict) else value
        for item in items:
            _check_plain(name, item, most, longest, depth + 1)


def _as_type(name: str, value: Any, expected: Any) -> Any:
    """The field's value as JSON gives it, with a tuple for a list where that is `expected`.

    Raises:
        TypeError: it has another type; `name` is the field's.
    """
    value = tuple(value) if get_origin(expected) is tuple and isinstance(value, list) else value
    if not _fits(value, expected):
        raise TypeError(f"{name} should be {ModelInfo.__annotations__[name]}, and is {value!r}"[:_SHOWN])
    return value


def _fits(value: Any, expected: Any) -> bool:
    """Whether `value` has the type `expected`: a plain one, None, a union, a list, a tuple or a dict of such."""
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
    """The model in the ONNX file `path`.

    Raises:
        CheckpointError: it is missing, no ONNX file, or has changed since lbitcls wrote it.
        DependencyError: the package `onnx` is missing.
    """
    path = existing_file(path)
    onnx = require("onnx")
    _check_seal(path)
    try:
        model = onnx.load(str(path))
    except OSError as error:  # external data is missing
        raise CheckpointError(f"{path} cannot be read as an ONNX model: {str(error)[:_SHOWN]}") from error
    except Exception as error:  # protobuf's own kinds
        raise _no_model(path) from error
    if not model.ir_version or not model.graph.output:
        raise _no_model(path)
    return model


def _no_model(path: Path) -> CheckpointError:
    """The error for a file whose bytes are not those of an ONNX model with a graph."""
    how = "export the model again"
    if path.suffix.lower() in _CHECKPOINTS:
        how = f"export the checkpoint first: lbitcls export CONFIG {path} --out model.onnx"
    return CheckpointError(
        f"{path} is no ONNX model, or a damaged one; a file that `lbitcls export` wrote is expected, or another ONNX "
        f"model of images. {how[0].upper()}{how[1:]}."
    )


def require(package: str) -> ModuleType:
    """The optional package, imported.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise DependencyError(
            f"the package {package} is needed and cannot be imported ({error}); pip install lbitcls[deploy] brings it."
        ) from error


def existing_file(path: str | Path) -> Path:
    """`path`, which must be a file; `CheckpointError` with the nearest name in its folder when it is none."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not an ONNX file.")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no regular file; name an ONNX file.")
    if not path.is_file():
        names = [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        raise CheckpointError(f"there is no ONNX file {path}{suggest(path.name, names)}")
    return path
