"""Whether a checkpoint's file is whole and its content has a checkpoint's form, before anything of it is used."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lbitcls.utils.errors import CheckpointError

WEIGHTS = ("state_dict", "model")
"""Where training scripts keep the state dict inside a checkpoint."""

_ZIP = b"PK\x03\x04"
_PIECE = 2**20  # bytes that are read at a time
_FIRST = 8  # names that a message lists before it counts the rest
_DEEPEST = 32  # containers within each other
_SHOWN = 100  # characters of a name that a message shows
_LONGEST = 1000  # characters of the name of a tensor or a class
_LARGEST = 2**63  # a count is below it
_REPEATED = 2**20  # elements that a tensor may have without having a place in the file for each
_COUNTS = ("epoch", "iter", "inner_iter", "images", "epoch_len", "seed", "world_size", "max_epochs")
_TEXTS = ("lbitcls_version", "config", "run", "phase", "kernels", "optimizer")
_FLAGS = tuple(f"_quantizer.{name}" for name in ("initialized", "enabled", "negative"))


def shown_name(name: Any) -> str:
    """A name from a file as a message shows it: its middle left out where it is long, on one line.

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
    """The first names of many, and the number of the others."""
    rest = f", … and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
    return ", ".join(shown_name(name) for name in islice(names, _FIRST)) + rest


def check_sums(path: Path, tensors: bool = True) -> None:
    """Compare each part of a checkpoint with the checksum that the file keeps of it.

    Args:
        path: a file that `torch.save` wrote; one in its older format has no checksums and passes.
        tensors: False: all but the tensors' values, which are most of the file.

    Raises:
        CheckpointError: a part has changed since, or is not there.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if tensors or "/data/" not in entry.filename:
                    _read_through(archive, entry)
    except Exception as error:  # zipfile raises what the damage leads to: BadZipFile, struct.error, RuntimeError …
        why = shown_name(str(error) or type(error).__name__)
        raise CheckpointError(
            f"checkpoint {path} is damaged ({why}): it has changed since it was written, or was not copied in full. "
            "Copy it again, or take another checkpoint of the run."
        ) from error


def _read_through(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as part:  # compares at the end
        while part.read(_PIECE):
            pass


def checked(content: Any, path: Path) -> dict[str, Any]:
    """The content of a checkpoint, with `'meta'` and `'state_dict'`; a bare state dict is wrapped so.

    Raises:
        CheckpointError: it holds no weights, or something in it is not what a checkpoint has there.
    """
    if _too_deep(content):
        raise CheckpointError(f"{path} is no checkpoint: it holds containers within each other, over {_DEEPEST} deep.")
    found = _with_state_dict(content, path)
    if not isinstance(found["meta"], dict):
        raise CheckpointError(f"{path}: 'meta' should be a dict, and is a {type(found['meta']).__name__}.")
    return {**found, "meta": _checked_meta(found["meta"], path), "state_dict": checked_tensors(found, path)}


def _too_deep(content: Any) -> bool:
    level = {id(content): content}
    for _ in range(_DEEPEST):
        items = (item for one in level.values() for item in (one.values() if isinstance(one, Mapping) else one))
        level = {id(item): item for item in items if isinstance(item, (Mapping, list, tuple, set))}
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
        f"{path} holds no weights: a state dict, or one under 'state_dict' or 'model'; it has {_held(content)}."
    )


def _inner(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The innermost state dict."""
    for name in WEIGHTS:
        if isinstance(content.get(name), Mapping):
            return _inner(content[name])
    return content


def _held(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"the keys {listed(content)}"


def checked_tensors(content: Mapping[str, Any], path: Path, name: str = "state_dict") -> dict[str, torch.Tensor]:
    """The state dict under `name`: plain tensors by their names; a module's extra state that is no tensor is left out.

    Raises:
        CheckpointError: it has something else.
    """
    given = content.get(name)
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{path}: '{name}' should be a state dict, and is a {type(given).__name__}.")
    state = {
        key: value
        for key, value in given.items()
        if isinstance(value, torch.Tensor) or not str(key)[-64:].endswith("_extra_state")
    }
    for key, value in state.items():
        fault = _fault(key, value)
        if fault:
            raise CheckpointError(f"{path}: {shown_name(key)} in '{name}' is no weight of a checkpoint: {fault}.")
    return state


def _fault(name: Any, value: Any) -> str:
    """What is wrong with an entry of a state dict, or nothing."""
    if not isinstance(name, str) or len(name) > _LONGEST:
        return f"a name is text of at most {_LONGEST} characters"
    if not isinstance(value, torch.Tensor):
        return f"it should be a tensor, and is a {type(value).__name__}"
    if value.is_meta:
        return "it is a tensor of the device 'meta', which has no values"
    if value.is_nested or value.layout is not torch.strided or value.is_quantized or value.is_complex():
        kind = "nested" if value.is_nested else f"{str(value.layout).removeprefix('torch.')}, {value.dtype}"
        return f"it should be a dense tensor of plain numbers, and is {kind}"
    if value.numel() > _REPEATED and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"it claims {value.numel()} elements, and the file has fewer"
    if name.endswith(_FLAGS) and value.numel() != 1:
        return f"it should be one value, and has the shape {tuple(value.shape)}"
    return ""


def _checked_meta(meta: dict[Any, Any], path: Path) -> dict[str, Any]:
    """The meta data; of another tool's file only what has our names and our types, and all other names."""
    faults = {key: fault for key in meta if (fault := _meta_fault(key, meta[key]))}
    if faults and "lbitcls_version" in meta:
        key, fault = next(iter(faults.items()))
        raise CheckpointError(f"{path}: {shown_name(key)} in 'meta' {fault}. The file is damaged, or was changed.")
    return {key: value for key, value in meta.items() if key not in faults}


def _meta_fault(key: Any, value: Any) -> str:
    if not isinstance(key, str):
        return "should be a name"
    if value is None:
        return ""
    if key in _COUNTS and not is_count(value):
        return f"should be a whole number from 0, and is {_short(value)}"
    if key in _TEXTS and not _is_text(value):
        return f"should be text, and is {_short(value)}"
    if key == "CLASSES" and not _are_classes(value):
        return f"should be a list of the classes' names, and is {_short(value)}"
    return ""


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number from 0 of a size that can be meant."""
    return type(value) is int and 0 <= value < _LARGEST


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # a half of a character that takes two
        return False


def _are_classes(value: Any) -> bool:
    """Whether `value` lists names (some data sets' are numbers)."""
    return isinstance(value, (list, tuple)) and all(
        is_count(name) or (_is_text(name) and len(name) <= _LONGEST) for name in value
    )


def _short(value: Any) -> str:
    """A value, where it is a short one, and else its type."""
    if isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < _LARGEST):
        return shown_name(repr(value)) if not isinstance(value, str) else f"'{shown_name(value)}'"
    return f"a {type(value).__name__}"
