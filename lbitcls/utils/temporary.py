"""Temporary files and folders next to their final names: random names, exclusive creation, locked while in use.

A process that ends by an error, Ctrl+C or SIGTERM removes its own (`ending_by_signals`); a killed one leaves them
behind. `remove_leftovers` recognizes them by their names, which identify the machine, and by their locks, which end
with the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

_NAME = re.compile(r"\.lbitcls-([0-9a-f]{8})-[0-9a-f]{16}\.tmp")


@cache
def _machine() -> str:
    """Return eight hex digits for this machine: some shared folders do not show other machines' locks."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def temporary_name(folder: Path) -> Path:
    """Return an unused and unpredictable name in `folder`."""
    return folder / f".lbitcls-{_machine()}-{secrets.token_hex(8)}.tmp"


@contextmanager
def new_temporary(folder: Path) -> Iterator[tuple[Path, int]]:
    """Create an empty file in `folder`, locked by this process; yield its path and descriptor, and remove it if unused.

    Raises:
        OSError: No file can be created there.
    """
    path, descriptor = _made(folder, _new_file)
    try:
        yield path, descriptor
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def new_temporary_folder(folder: Path) -> Iterator[Path]:
    """Create an empty folder in `folder`, locked by this process; yield its path, and remove it with its content.

    It may be renamed meanwhile, and stays then.

    Raises:
        OSError: No folder can be created there.
    """
    path, descriptor = _made(folder, _new_folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _made(folder: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Return the path and the locked descriptor of what `create` makes in `folder`."""
    while True:
        path = temporary_name(folder)
        descriptor = create(path)
        if descriptor < 0:
            continue
        hold(descriptor, wait=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return path, descriptor
        os.close(descriptor)  # another process's `remove_leftovers` was faster than the lock


def _new_file(path: Path) -> int:
    # The mode follows the umask rather than being private: the result is an ordinary file.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def _new_folder(path: Path) -> int:
    """Create a folder and return its descriptor; -1 if it was taken for a leftover before it could be opened."""
    path.mkdir()
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return -1


def hold(descriptor: int, wait: bool = False, shared: bool = False) -> bool:
    """Lock a file until it is closed or the process ends; return False if another holds it or nobody can."""
    import fcntl

    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files and folders that killed processes of this user and machine left in `folder`.

    Those that a living process is writing stay, as does everything of other names.

    Returns:
        The removed paths.
    """
    removed = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            known = _NAME.fullmatch(entry.name)
            if known and known[1] == _machine() and _removed(Path(entry.path), entry.is_dir(follow_symlinks=False)):
                removed.append(Path(entry.path))
    return removed


def _removed(path: Path, is_folder: bool) -> bool:
    kind = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR  # network file systems lock what is writable
    try:
        descriptor = os.open(path, kind | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        ours = (stat.S_ISREG(status.st_mode) or is_folder) and status.st_uid == os.geteuid()
        if not ours or not hold(descriptor):
            return False
        shutil.rmtree(path) if is_folder else path.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as an exception does, so that it removes its temporary files.

    The exit code is 128 + the signal's number. A second signal ends the process at once. Signals that are ignored
    (`nohup`) or handled already are left alone, as they are outside the main thread.
    """
    numbers = (signal.SIGTERM, signal.SIGHUP)
    in_main = threading.current_thread() is threading.main_thread()
    taken = [number for number in numbers if in_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)
