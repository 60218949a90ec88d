"""Atomic writing of files, and checks that they can be written, without importing PyTorch."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from lbitcls.utils.errors import ConfigError, LbitclsError, nearest, suggest
from lbitcls.utils.failures import explain
from lbitcls.utils.temporary import hold, new_temporary, remove_leftovers, temporary_name

EXPORTED = (".onnx", ".tflite", ".pte")
"""Suffixes of exported models."""
MODEL_OF_FOLDER = "model.onnx"
"""File with the model in an exported folder, such as a web page."""


def is_exported(path: str | os.PathLike) -> bool:
    """Return True if a path's suffix is that of an exported model, or if it is a folder that contains one."""
    return Path(path).suffix.lower() in EXPORTED or Path(path, MODEL_OF_FOLDER).expanduser().is_file()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, sync it, and only then rename it to `path`.

    If `path` is a symbolic link, it stays one, and its target is replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_temporary(path.parent) as (temporary, descriptor):
            write(temporary)
            os.fsync(descriptor)
            if not os.path.samestat(os.fstat(descriptor), os.lstat(temporary)):
                raise OSError(errno.EEXIST, "something else replaced a temporary file", str(temporary))
            temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk's error names no file, other errors the temporary one
        raise
    sync_folder(path.parent)


_BLOCK = 2**20  # bytes of a text that are decoded at once
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike) -> io.FileIO:
    """Open a regular file, or a link to one, for unbuffered reading.

    A pipe, a socket or a device could block forever or have no end, so it is not even opened.

    Raises:
        OSError: It is missing, not a regular file, or unreadable, or the name cannot be a file's.
    """
    try:
        _require_regular(os.stat(path), path)
    except ValueError as error:  # the name contains a NUL, or characters that no file name can encode
        raise OSError(errno.EINVAL, str(error), repr(os.fspath(path))) from error
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor), path)  # it may have been replaced meanwhile
        return io.FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a regular file's content, in hexadecimal.

    Raises:
        OSError: It is missing, not a regular file, or unreadable.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file; the byte order mark that Windows editors write is dropped.

    Raises:
        OSError: It is missing, not a regular file, or unreadable.
        UnicodeDecodeError: It is not UTF-8.
    """
    return list(each_line(path))


def each_line(path: Path) -> Iterator[str]:
    """Yield the lines that `read_lines` returns, and raise its errors before the first; without a list of all lines."""
    with open_regular(path) as file:
        content = file.readall().removeprefix(codecs.BOM_UTF8)
    blocks = list(_blocks(content))
    try:
        for block in blocks:
            content[block].decode()
    except UnicodeDecodeError:
        content.decode()  # for the position in the whole file
    return (line for block in blocks for line in content[block].decode().splitlines())


def _blocks(content: bytes) -> Iterator[slice]:
    """Yield the parts of a text, each of which ends with a line feed, or with the text."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start + _BLOCK) + 1 or len(content)
        yield slice(start, end)
        start = end


def _require_regular(status: os.stat_result, path: str | os.PathLike) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of another kind")
        raise OSError(errno.EINVAL, f"not a regular file but {kind}", os.fspath(path))


def write_out(path: Path, content: bytes) -> None:
    """Write a file atomically; write directly to an existing path that is not a regular file (a pipe, a terminal)."""
    if path.exists() and not path.is_file():
        path.write_bytes(content)
    else:
        write_whole(path, lambda temporary: temporary.write_bytes(content))


def is_standard_output(path: str | Path) -> bool:
    """Return True if `path` is `-` or another name of this process's standard output, such as `/dev/stdout`."""
    if str(path) == "-":
        return True
    try:
        return os.path.samestat(os.stat(Path(path).expanduser()), os.fstat(1))
    except OSError:
        return False


def check_writable(path: str | Path, option: str, *inputs: str | Path, streams: bool = False) -> Path:
    """Return `path` with `~` expanded, after a check, before the work starts, that `write_whole` can write it.

    Nothing is left behind: a missing folder is created only when the file is written. Leftovers of killed commands in
    an existing folder are removed.

    Args:
        path: File to write.
        option: Name of the option by which the user gave it (`--out`), for the message.
        inputs: Other files that the command reads or writes, none of which it may replace.
        streams: Accept pipes and devices too, for `write_out`.

    Raises:
        ConfigError: `path` is a folder, a device (without `streams`) or one of `inputs`, or cannot be created.
        ResourceError: The disk is full, or fails.
    """
    path = Path(path).expanduser()
    target = Path(os.path.realpath(path))
    if target in {Path(os.path.realpath(Path(other).expanduser())) for other in inputs}:
        raise ConfigError(f"{option} {path} would replace a file that this command uses; name another file.")
    try:
        if streams and path.exists() and not (path.is_file() or path.is_dir()):
            return path
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "not a regular file"
            raise ConfigError(f"{option} must name a file to write; {path} is {kind}.")
        folder = next(above for above in target.parents if above.exists())
        if len(os.fsencode(target.name)) > os.pathconf(folder, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        _probe(folder)
    except OSError as error:
        raise _unwritable(option, path, error, "a file elsewhere") from error
    return path


def check_folder(path: str | Path, option: str) -> Path:
    """Return `path` with `~` expanded, after a check that the folder exists or can be created, and is writable.

    Nothing is left behind.

    Args:
        path: The folder.
        option: Name of the option by which the user gave it, for the message.

    Raises:
        ConfigError: It is not a folder, or nothing can be written there.
        ResourceError: The disk is full, or fails.
    """
    path = Path(path).expanduser()
    target = Path(os.path.realpath(path))
    try:
        _probe(next(above for above in (target, *target.parents) if above.exists()))
    except OSError as error:
        raise _unwritable(option, path, error, "another folder") from error
    return path


def _unwritable(option: str, path: Path, error: OSError, remedy: str) -> LbitclsError:
    """Return the error of a path that cannot be written: the machine's failure, or a mistake of the command."""
    error.filename = str(path)  # not that of the temporary file
    return explain(error) or ConfigError(f"{option} {path} cannot be written: {error.strerror}; choose {remedy}.")


def _probe(folder: Path) -> None:
    """Create a file in `folder` and remove it, and leftovers of killed processes; raise `OSError` if that fails."""
    with new_temporary(folder):
        pass
    remove_leftovers(folder)


def link_whole(target: Path, link: Path) -> None:
    """Make `link` another name of the file `target` (a copy if the file system has no hard links), atomically.

    A symbolic `link` is replaced: it would point to an older checkpoint.
    """
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        _link(target, link, temporary_name(link.parent))
    except OSError as error:
        error.filename = str(link)  # rather than the temporary name
        raise
    sync_folder(link.parent)


def _link(target: Path, link: Path, temporary: Path) -> None:
    import shutil

    with open(target, "rb") as file:
        hold(file.fileno(), shared=True)  # holds `temporary` too, which is the same file
        try:
            os.link(target, temporary)
        except OSError:
            write_whole(temporary, lambda copy: shutil.copyfile(target, copy))
        try:
            temporary.replace(link)
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` survive a power failure, if the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def suggest_path(path: Path, pattern: str = "*") -> str:
    """Return the end of a sentence about a missing file or folder.

    Args:
        path: Path that does not exist.
        pattern: Pattern of the names that may be suggested.

    Returns:
        `". Did you mean 'model.onnx'?"` with the nearest name in its folder; with the nearest path if that folder does
        not exist either; `"."` if nothing is similar.
    """
    if path.parent.is_dir():
        return suggest(path.name, [found.name for found in path.parent.glob(pattern)])
    found = nearest_path(path)
    return "." if found is None or not found.match(pattern) else f". Did you mean '{found}'?"


def nearest_path(path: Path) -> Path | None:
    """Return the existing path whose folders and name are the nearest to those of `path`, or None."""
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        try:
            same, names = (found / part).exists(), os.listdir(found)
        except OSError:
            return None
        name = part if same else nearest(part, names)
        if name is None:
            return None
        found /= name
    return found
