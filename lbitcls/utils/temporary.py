"""Temporary files next to their final names: random names, exclusive creation, locked while they are written.

A killed process leaves its temporary file behind. `remove_leftovers` recognizes it by its name, which identifies the
machine, and by its lock, which ends with the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

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
    path, descriptor = _made(folder)
    try:
        yield path, descriptor
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _made(folder: Path) -> tuple[Path, int]:
    while True:
        path = temporary_name(folder)
        # The mode follows the umask rather than being private: the result is an ordinary file.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        hold(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # another process's `remove_leftovers` was faster than the lock


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
    """Remove the temporary files that killed processes of this user and machine left in `folder`.

    Files that a living process is writing stay, as do all files of other names.

    Returns:
        The removed files.
    """
    removed = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            known = _NAME.fullmatch(entry.name)
            if known and known[1] == _machine() and _removed(Path(entry.path)):
                removed.append(Path(entry.path))
    return removed


def _removed(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or not hold(descriptor):
            return False
        path.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
