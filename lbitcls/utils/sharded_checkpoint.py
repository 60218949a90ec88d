"""Sharded checkpoints: folders to which each process writes its parts of the tensors (`torch.distributed.checkpoint`).

`epoch_3.sharded/` contains the parts and their index, as PyTorch writes them, and `plain.pth` with everything else of
a checkpoint. A distributed tensor's name in the index is its path in the checkpoint, in JSON: `["state_dict",
"head.fc.weight"]`. The folder has its name only when it is complete. Reading needs no process group, and any number of
processes may read what another number wrote.
"""

from __future__ import annotations

import io
import json
import pickle  # nosec B403  # of an unpickler that knows no other classes than `_CLASSES`
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lbitcls.utils.checkpoint_content import check_sums
from lbitcls.utils.dist import broadcast_object, is_main
from lbitcls.utils.errors import CheckpointError
from lbitcls.utils.files import sync_folder
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.shards import is_shard
from lbitcls.utils.temporary import new_temporary_folder

SUFFIX = ".sharded"
PLAIN = "plain.pth"
INDEX = ".metadata"
_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_CLASSES = {
    *((module, name) for module in _MODULES for name in ("_StorageInfo", "Metadata", "MetadataIndex", "StorageMeta")),
    *((_MODULES[0], f"{kind}StorageMetadata") for kind in ("Tensor", "Chunk")),
    *((_MODULES[0], name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}
"""What an index of tensors consists of. `BytesStorageMetadata` must not be there: PyTorch unpickles such an entry."""


def write_sharded(content: dict[str, Any], path: Path, write: Callable[[dict[str, Any], Path], None]) -> None:
    """Write a checkpoint whose distributed tensors all processes write together; all must call this.

    Args:
        content: Result of `checkpoint_content`.
        path: Folder to write; one of that name is replaced when the new one is complete.
        write: Function that writes a checkpoint to a file, for the rest.

    Raises:
        OSError: A process cannot write.
    """
    shards: dict[str, Any] = {}
    rest = _split(content, (), shards)
    if not is_main():
        _save(shards, Path(broadcast_object(None)))
        _agree(None)
        return
    with new_temporary_folder(path.parent) as folder:
        broadcast_object(str(folder))
        _save(shards, folder)
        error = None
        try:
            write(rest, folder / PLAIN)
            _rename(folder, path)
        except OSError as failure:
            error = failure
        _agree(error)


def _agree(error: OSError | None) -> None:
    """Raise the first process's error on all."""
    error = broadcast_object(error)
    if error is not None:
        raise error


def _save(shards: dict[str, Any], folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with _plain_errors():
        dcp.save(shards, storage_writer=dcp.FileSystemWriter(folder))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the cause of a failure, on all processes, instead of PyTorch's exception, which is no `Exception`."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), causes[0]) from None


def _rename(folder: Path, path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
    folder.rename(path)
    sync_folder(path.parent)


def _split(content: Any, place: tuple[Any, ...], shards: dict[str, Any]) -> Any:
    """Return a nested dict without its distributed tensors, which go to `shards` under their paths."""
    if not isinstance(content, dict):
        return content
    kept = {}
    for key, value in content.items():
        if is_shard(value):
            shards[json_text([*place, key])] = value.detach()
        else:
            kept[key] = _split(value, (*place, key), shards)
    return kept


def is_sharded(path: Path) -> bool:
    """Return True if `path` is a folder with a sharded checkpoint."""
    return (path / PLAIN).is_file() and (path / INDEX).is_file()


def read_sharded(path: Path, tensors: bool = True) -> Any:
    """Return the content of a sharded checkpoint, with whole tensors on the CPU.

    Args:
        path: The folder.
        tensors: False: leave out the distributed tensors.

    Raises:
        CheckpointError: It is damaged, or contains anything but plain data.
    """
    check_sums(path / PLAIN)
    try:
        content = torch.load(path / PLAIN, map_location="cpu", weights_only=True)
        if tensors:
            _merge(content, _load(path))
    except Exception as error:  # of damaged files, of many kinds
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        raise CheckpointError(
            f"sharded checkpoint {path} cannot be read ({reason}): it is damaged, or copied only in part. Use another "
            "checkpoint of the run."
        ) from error
    return content


def _load(path: Path) -> dict[str, torch.Tensor]:
    import torch.distributed.checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        """Reader whose index can contain nothing but an index."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            index = _Index(io.BytesIO((path / INDEX).read_bytes())).load()
            index.storage_meta = index.storage_meta or dcp.metadata.StorageMeta()
            index.storage_meta.load_id = self.load_id
            return index

    reader = Reader(path)
    known = reader.read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in known.items()}
    with _plain_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no process group, which is intended
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


class _Index(pickle.Unpickler):
    """Unpickler of an index, which PyTorch pickles: of its classes alone, so that no file can run code."""

    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in _CLASSES and not is_type:
            raise pickle.UnpicklingError(f"its index contains {module}.{name}")
        return super().find_class(module, name)


def _merge(content: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        *places, key = json.loads(name)
        owner = content
        for place in places:
            owner = owner.setdefault(place, {})
        owner[key] = tensor


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, a file or a folder, if it exists."""
    if is_sharded(path) and not path.is_symlink():
        shutil.rmtree(path)
    elif not path.is_dir():
        path.unlink(missing_ok=True)
