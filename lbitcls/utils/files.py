"""Files that are written whole or not at all, and whether they can be written; no PyTorch is needed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

from lbitcls.utils.errors import ConfigError
from lbitcls.utils.temporary import hold, new_temporary, remove_leftovers, temporary_name


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and only then give it its name.

    Where `path` is a symbolic link, it stays one, and the file that it points to is replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_temporary(path.parent) as (temporary, descriptor):
            write(temporary)
            os.fsync(descriptor)
            if not os.path.samestat(os.fstat(descriptor), os.lstat(temporary)):
                raise OSError(errno.EEXIST, "something else took the place of a temporary file", str(temporary))
            temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk's error names no file, others the temporary one
        raise
    sync_folder(path.parent)


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike) -> io.FileIO:
    """Open a regular file, or a link to one, to be read; without a buffer.

    A pipe, a socket or a device of that name may wait for ever, or have no end: it is not even opened.

    Raises:
        OSError: it is missing, no regular file, or cannot be read; also where the name cannot be a file's.
    """
    try:
        _require_regular(os.stat(path), path)
    except ValueError as error:  # a NUL in the name, or what no encoding of names has
        raise OSError(errno.EINVAL, str(error), repr(os.fspath(path))) from error
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor), path)  # it may be another one by now
        return io.FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8; editors on Windows put a mark before the text.

    Raises:
        OSError: it is missing, no regular file, or cannot be read.
        UnicodeDecodeError: it is no UTF-8.
    """
    with open_regular(path) as file:
        return file.readall().decode("utf-8-sig").splitlines()


def _require_regular(status: os.stat_result, path: str | os.PathLike) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of another kind")
        raise OSError(errno.EINVAL, f"no regular file but {kind}", os.fspath(path))


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

    Nothing is left behind: a folder that is missing is only made when the file is written. What killed commands left
    in a folder that is there is removed.

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
        if len(os.fsencode(target.name)) > os.pathconf(folder, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        _probe(folder)
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
        _probe(next(above for above in (target, *target.parents) if above.exists()))
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}; name another folder.") from error
    return path


def _probe(folder: Path) -> None:
    """Make a file in `folder` and remove it, as well as what killed processes left there; `OSError` where it fails."""
    with new_temporary(folder):
        pass
    remove_leftovers(folder)


def link_whole(target: Path, link: Path) -> None:
    """Make `link` another name of the file `target` (a copy where the file system has no hard links), atomically.

    A `link` that is a symbolic one is replaced: what it points to would be an older checkpoint.
    """
    import shutil

    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(link.parent)
    with open(target, "rb") as file:
        hold(file.fileno(), shared=True)  # of `temporary` too, which is the same file
        try:
            os.link(target, temporary)
        except OSError:
            write_whole(temporary, lambda copy: shutil.copyfile(target, copy))
        try:
            temporary.replace(link)
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` outlive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
