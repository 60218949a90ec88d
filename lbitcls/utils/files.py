"""Files that are written whole or not at all, and whether they can be written; no PyTorch is needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from lbitcls.utils.errors import ConfigError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and only then give it its name.

    Where `path` is a symbolic link, it stays one, and the file that it points to is replaced.
    """
    _replace_whole(Path(os.path.realpath(path)), write)


def _replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk's error names no file, others the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_out(path: Path, content: bytes) -> None:
    """Write a file whole; to what exists and is no regular file, a pipe or a terminal, directly."""
    if path.exists() and not path.is_file():
        path.write_bytes(content)
    else:
        write_whole(path, lambda temporary: temporary.write_bytes(content))


def is_standard_output(path: str | Path) -> bool:
    """Whether `path` is `-` or another name of this process's standard output, as `/dev/stdout`."""
    if str(path) == "-":
        return True
    try:
        return os.path.samestat(os.stat(Path(path).expanduser()), os.fstat(1))
    except OSError:
        return False


def check_writable(path: str | Path, option: str, *inputs: str | Path, streams: bool = False) -> Path:
    """`path` without `~`, to which `write_whole` will be able to write: asked before the work whose result it is.

    Nothing is left behind: a folder that is missing is only made when the file is written.

    Args:
        path: file to be written.
        option: how the user named it (`--out`), for the message.
        inputs: files that the command reads or writes otherwise, none of which it may replace.
        streams: take pipes and devices too, for `write_out`.

    Raises:
        ConfigError: `path` is a folder, a device (without `streams`) or one of `inputs`, or no file can be made there.
    """
    path = Path(path).expanduser()
    target = Path(os.path.realpath(path))
    if target in {Path(os.path.realpath(Path(other).expanduser())) for other in inputs}:
        raise ConfigError(f"{option} {path} would replace a file that this command uses; name another file.")
    try:
        if streams and path.exists() and not (path.is_file() or path.is_dir()):
            return path
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "no regular file"
            raise ConfigError(f"{path} is {kind}; {option} names the file to write.")
        folder = next(above for above in target.parents if above.exists())
        probe = _temporary(folder / target.name)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}; name a file elsewhere.") from error
    return path


def check_folder(path: str | Path, option: str) -> Path:
    """`path` without `~`, a folder that can be made, where it is missing, and written to; nothing is left behind.

    Args:
        path: the folder.
        option: how the user named it, for the message.

    Raises:
        ConfigError: it is no folder, or nothing can be written there.
    """
    path = Path(path).expanduser()
    target = Path(os.path.realpath(path))
    try:
        probe = _temporary(next(above for above in (target, *target.parents) if above.exists()) / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}; name another folder.") from error
    return path


def link_whole(target: Path, link: Path) -> None:
    """Make `link` another name of the file `target` (a copy where the file system has no hard links), atomically."""
    import shutil

    def make(temporary: Path) -> None:
        try:
            os.link(target, temporary)
        except OSError:
            shutil.copyfile(target, temporary)

    _replace_whole(link, make)  # a link's target would be an older checkpoint


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` outlive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
