"""Weights in safetensors files, with a checkpoint's metadata: plain data in a format that has no place for code.

The file's own metadata contain one text, under `lbitcls`: JSON of the version, config, class names and position, and a
SHA-256 of the tensors. safetensors checks that the header's sizes are those of the file before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lbitcls.utils.errors import CheckpointError
from lbitcls.utils.extras import import_extra
from lbitcls.utils.jsontext import json_text

SUFFIX = ".safetensors"
KEPT = ("lbitcls_version", "config", "CLASSES", "epoch", "iter", "phase", "calibrated_on")
"""Metadata of a checkpoint that its weights keep: what describes the model, not the run."""
_KEY = "lbitcls"
_SUM = "sha256"
_LONGEST = 2**24  # characters of the metadata
_EXTRA = "safetensors"


def is_weights_file(path: str | Path) -> bool:
    """Return True if a path's suffix is that of a safetensors file."""
    return Path(path).suffix.lower() == SUFFIX


def require_safetensors() -> None:
    """Raise `DependencyError` if safetensors is not installed."""
    import_extra("safetensors.torch", _EXTRA, f"A {SUFFIX} file")


def weights_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the content of a safetensors file with the weights and the metadata of a checkpoint.

    Args:
        content: Checkpoint, with `'meta'` and `'state_dict'`; what is needed only to resume a run is left out.
    """
    library = import_extra("safetensors.torch", _EXTRA, f"A {SUFFIX} file")
    tensors = {
        name: value.detach().cpu().contiguous().clone()  # tensors that share memory are refused
        for name, value in content["state_dict"].items()
        if isinstance(value, torch.Tensor)
    }
    meta = {name: content["meta"][name] for name in KEPT if content["meta"].get(name) is not None}
    text = json_text({**meta, _SUM: digest_of(tensors)})
    return library.save(tensors, metadata={"format": "pt", _KEY: text})


def read_weights(path: Path, map_location: str | torch.device = "cpu", check_sum: bool = True) -> dict[str, Any]:
    """Return the weights in a safetensors file as a checkpoint: `'meta'`, empty for another tool's, and `'state_dict'`.

    Args:
        path: Regular file.
        map_location: Device to load to.
        check_sum: False: do not compare the tensors with their checksum, for callers that need only the metadata.

    Raises:
        CheckpointError: The file is damaged, was changed, or is not a safetensors file.
        DependencyError: safetensors is not installed.
    """
    library = import_extra("safetensors", _EXTRA, str(path))
    try:
        with library.safe_open(str(path), framework="pt", device=str(map_location)) as file:
            meta = _meta((file.metadata() or {}).get(_KEY))
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # safetensors raises its own errors, torch others for types that it lacks
        why = f"{error}" or type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as weights ({why.splitlines()[0][:200]}): it is damaged, or not a {SUFFIX} file. "
            "Copy it again, or use another one."
        ) from error
    known = meta.pop(_SUM, None)
    if check_sum and known is not None and known != digest_of(state):
        raise CheckpointError(
            f"{path} is damaged: its weights are not those of its checksum; it was changed after it was written. Copy "
            "it again, or use another one."
        )
    return {"meta": meta, "state_dict": state}


def _meta(text: str | None) -> dict[str, Any]:
    """Return the metadata in the file's text; empty if it has none.

    Raises:
        ValueError: The text is too long, or not a dict in JSON.
    """
    if text is None:
        return {}
    if len(text) > _LONGEST:
        raise ValueError(f"its metadata have more than {_LONGEST:,} characters")
    try:
        meta = json.loads(text)
    except RecursionError:
        raise ValueError("its metadata are nested too deep") from None
    if not isinstance(meta, dict):
        raise ValueError(f"its metadata must be a dict; got a {type(meta).__name__}")
    return meta


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors: their names, types, shapes and values, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].cpu()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
