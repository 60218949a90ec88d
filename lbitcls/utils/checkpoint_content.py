"""Integrity of a checkpoint file and validity of its content, checked before use."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch

from lbitcls.utils.errors import CheckpointError

WEIGHTS = ("state_dict", "model")
"""Keys under which training scripts store the state dict in a checkpoint."""

_ZIP = b"PK\x03\x04"
_BYTES = b"\nbytearray\n"  # in a pickle, the name of the function
_PIECE = 2**20  # bytes per read
_FIRST = 8  # names that a message lists before it counts the rest
_CONTAINERS = (Mapping, list, tuple, set)
_DEEPEST = 32  # depth of nested containers
_SHOWN = 100  # characters of a name in a message
_LONGEST = 1000  # characters of a tensor's or class's name
_LARGEST = 2**63  # exclusive bound of a count
_REPEATED = 2**20  # elements that a tensor may have without storage in the file for each
_POSITION = ("epoch", "iter", "inner_iter", "images", "samples", "epoch_len", "data_len")
_COUNTS = (*_POSITION, "seed", "world_size", "max_epochs")
_TEXTS = ("lbitcls_version", "config", "run", "phase", "kernels", "optimizer", "teacher")
_FLAGS = tuple(f"_quantizer.{name}" for name in ("initialized", "enabled", "negative"))


def shown_name(name: Any) -> str:
    """Return a name from a file in the form for messages: on one line, shortened in the middle if it is long.

    Example:
        >>> shown_name("head.fc.weight"), shown_name(7), shown_name("a\\nb")
        ('head.fc.weight', 'a key of type int', 'a\\\\nb')
    """
    if not isinstance(name, str):
        return f"a key of type {type(name).__name__}"
    half = _SHOWN // 2
    text = name if len(name) <= _SHOWN else f"{name[:half]}…{name[-half:]}"
    return text if text.isprintable() else ascii(text)[1:-1]


def listed(names: Collection[Any]) -> str:
    """Return the first names of many, and the number of the rest."""
    rest = f", … and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
    return ", ".join(shown_name(name) for name in islice(names, _FIRST)) + rest


def check_sums(path: Path, tensors: bool = True) -> None:
    """Compare each part of a checkpoint file with its checksum in the file.

    Args:
        path: File written by `torch.save`; one in its older format has no checksums and passes.
        tensors: False skips the tensors' values, which are most of the file.

    Raises:
        CheckpointError: A part has changed, or is missing.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            _refuse_allocations(file, path)
            return
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path.stat().st_size)
            for entry in archive.infolist():
                if tensors or "/data/" not in entry.filename:
                    _read_through(archive, entry)
                if entry.filename.endswith("data.pkl"):
                    with archive.open(entry) as part:
                        _refuse_allocations(part, path)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises many kinds on damaged files: BadZipFile, struct.error, RuntimeError …
        why = shown_name(str(error) or type(error).__name__)
        raise CheckpointError(
            f"checkpoint {path} is damaged ({why}): it was changed after it was written, or copied only in part. "
            "Copy it again, or use another checkpoint of the run."
        ) from error


def _check_sizes(archive: zipfile.ZipFile, most: int) -> None:
    """Raise ValueError if the parts have more bytes than the file: `torch.save` does not compress."""
    total = sum(entry.file_size for entry in archive.infolist())
    if total > most:
        raise ValueError(f"its parts have {total:,} bytes, the file {most:,}")


def _refuse_allocations(part: IO[bytes], path: Path) -> None:
    """Raise `CheckpointError` for a pickle that makes a `bytearray`, which a few bytes let fill the memory."""
    tail = b""
    while piece := part.read(_PIECE):
        if _BYTES in tail + piece:
            raise CheckpointError(f"{path} is not a checkpoint: it contains a bytearray, not only tensors and numbers.")
        tail = piece[-len(_BYTES) :]


def _read_through(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as part:  # verified at the end
        while part.read(_PIECE):
            pass


def checked(content: Any, path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, with `'meta'` and `'state_dict'`; a bare state dict is wrapped.

    Raises:
        CheckpointError: It contains no weights, or an entry of the wrong type.
    """
    if _too_deep(content):
        raise CheckpointError(f"{path} is not a checkpoint: its containers are nested more than {_DEEPEST} deep.")
    found = _with_state_dict(content, path)
    if not isinstance(found["meta"], dict):
        raise CheckpointError(f"{path}: 'meta' must be a dict; got a {type(found['meta']).__name__}.")
    return {**found, "meta": _checked_meta(found["meta"], path), "state_dict": checked_tensors(found, path)}


def _too_deep(content: Any) -> bool:
    level = {id(content): content} if isinstance(content, _CONTAINERS) else {}
    for _ in range(_DEEPEST):
        items = (item for one in level.values() for item in (one.values() if isinstance(one, Mapping) else one))
        level = {id(item): item for item in items if isinstance(item, _CONTAINERS)}
        if not level:
            return False
    return True


def _with_state_dict(content: Any, path: Path) -> dict[str, Any]:
    if isinstance(content, Mapping):
        state = _inner(content)
        if state is not content:
            return {"meta": {}, **content, "state_dict": state}
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return {"meta": {}, "state_dict": content}
    raise CheckpointError(
        f"{path} contains no weights: a state dict, or one under 'state_dict' or 'model'; it has {_held(content)}."
    )


def _inner(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the innermost state dict."""
    for name in WEIGHTS:
        if isinstance(content.get(name), Mapping):
            return _inner(content[name])
    return content


def _held(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"the keys {listed(content)}"


def checked_tensors(content: Mapping[str, Any], path: Path, name: str = "state_dict") -> dict[str, torch.Tensor]:
    """Return the state dict under `name`: plain tensors by name, without a module's extra state that is not a tensor.

    Raises:
        CheckpointError: It contains anything else.
    """
    given = content.get(name)
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{path}: '{name}' must be a state dict; got a {type(given).__name__}.")
    state = {
        key: value
        for key, value in given.items()
        if isinstance(value, torch.Tensor) or not str(key)[-64:].endswith("_extra_state")
    }
    for key, value in state.items():
        fault = _fault(key, value)
        if fault:
            raise CheckpointError(f"{path}: {shown_name(key)} in '{name}' is not a checkpoint's weight: {fault}.")
    return state


def _fault(name: Any, value: Any) -> str:
    """Return the fault of a state dict's entry, or an empty string."""
    if not isinstance(name, str) or len(name) > _LONGEST:
        return f"its name must be a string of at most {_LONGEST} characters"
    if not isinstance(value, torch.Tensor):
        return f"it must be a tensor; got a {type(value).__name__}"
    if value.is_meta:
        return "it is a tensor on the device 'meta', which has no values"
    if value.is_nested or value.layout is not torch.strided or value.is_quantized or value.is_complex():
        kind = "nested" if value.is_nested else f"{str(value.layout).removeprefix('torch.')}, {value.dtype}"
        return f"it must be a dense tensor of plain numbers; got {kind}"
    if value.numel() > _REPEATED and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"it claims {value.numel()} elements, but the file has fewer"
    if name.endswith(_FLAGS) and value.numel() != 1:
        return f"it must be a single value; got shape {tuple(value.shape)}"
    return ""


def _checked_meta(meta: dict[Any, Any], path: Path) -> dict[str, Any]:
    """Return the metadata; from another tool's file only our names with our types, plus all other names."""
    faults = {key: fault for key in meta if (fault := _meta_fault(key, meta[key]))}
    if faults and "lbitcls_version" in meta:
        key, fault = next(iter(faults.items()))
        raise CheckpointError(f"{path}: {shown_name(key)} in 'meta' {fault}. The file is damaged, or was changed.")
    return {key: value for key, value in meta.items() if key not in faults}


def _meta_fault(key: Any, value: Any) -> str:
    if not isinstance(key, str):
        return "must be a name"
    if value is None:
        return ""
    if key in _COUNTS and not is_count(value):
        return f"must be an integer ≥ 0; got {_short(value)}"
    if key in _TEXTS and not _is_text(value):
        return f"must be a string; got {_short(value)}"
    if key == "CLASSES" and not _are_classes(value):
        return f"must be a list of class names; got {_short(value)}"
    return ""


def is_count(value: Any) -> bool:
    """Return True if `value` is an integer from 0 to a plausible size."""
    return type(value) is int and 0 <= value < _LARGEST


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _are_classes(value: Any) -> bool:
    """Return True if `value` lists names (numbers in some data sets)."""
    return isinstance(value, (list, tuple)) and all(
        is_count(name) or (_is_text(name) and len(name) <= _LONGEST) for name in value
    )


def _short(value: Any) -> str:
    """Return a short value itself, and the type of a longer one."""
    if isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < _LARGEST):
        return shown_name(repr(value)) if not isinstance(value, str) else f"'{shown_name(value)}'"
    return f"a {type(value).__name__}"
