"""Temporary files beside those that they become: named by chance, made exclusively, held while they are written.

A process that is killed leaves its temporary file behind. `remove_leftovers` knows it by its name, which says what
machine it is of, and by its lock, which ends with the process.
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
    """Eight digits for this machine: locks of others cannot be seen in every shared folder."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def temporary_name(folder: Path) -> Path:
    """A name in `folder` that nothing has and nobody can foresee."""
    return folder / f".lbitcls-{_machine()}-{secrets.token_hex(8)}.tmp"


@contextmanager
def new_temporary(folder: Path) -> Iterator[tuple[Path, int]]:
    """An empty file in `folder`, new and held by this process, with its descriptor; removed at the end if still there.

    Raises:
        OSError: nothing can be made there.
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
        # With the umask's mode, not for the user alone: what it becomes is an ordinary file.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        hold(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # `remove_leftovers` of another process was quicker than the lock


def hold(descriptor: int, wait: bool = False, shared: bool = False) -> bool:
    """Lock a file until it is closed, or the process ends; False where another holds it, or nobody can."""
    import fcntl

    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that killed processes of this user and this machine left in `folder`.

    What a living process writes stays, as does every file of another name.

    Returns:
        What was removed.
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
