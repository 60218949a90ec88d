"""Disks that are full, read-only, slow or report errors: `shim.c`, preloaded, makes the file system below a folder so.

It needs a C compiler and a dynamic linker that preloads (Linux). No privileges are needed, and root is not exempt.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHANGES, READS, CREATIONS = 1, 2, 4
_SOURCE = Path(__file__).with_name("shim.c")
ALWAYS = -1


@dataclass(frozen=True)
class Fault:
    """A failing disk.

    Attributes:
        name: Row of the table.
        kinds: Operations that count and fail: `CHANGES` to files, `READS`, `CREATIONS` of names.
        number: Error number; 0: none.
        times: Number of operations that fail; `ALWAYS`: all from the first on.
        pause: Seconds that each takes.
    """

    name: str
    kinds: int
    number: int
    times: int = ALWAYS
    pause: float = 0.0


FULL = Fault("a full disk", CHANGES, errno.ENOSPC)
FAULTS = (
    FULL,
    Fault("a disk without room for more files", CREATIONS, errno.ENOSPC),
    Fault("a disk that becomes read-only", CHANGES, errno.EROFS),
    Fault("a disk error in every write", CHANGES, errno.EIO),
    Fault("a disk error in every access", CHANGES | READS, errno.EIO),
    Fault("a disk error, once", CHANGES | READS, errno.EIO, times=1),
    Fault("a slow disk", CHANGES | READS, 0, pause=0.003),
)


def build(folder: Path) -> Path | None:
    """Compile the shim into `folder`; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


def is_loaded() -> bool:
    """Return True if the shim was preloaded into this process."""
    return hasattr(ctypes.CDLL(None), "stress_disk")


class Counter:
    """Number of operations so far, in memory that a process shares with those that it forks."""

    def __init__(self) -> None:
        self.cell = ctypes.c_long.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))

    @property
    def value(self) -> int:
        return self.cell.value


def failing(folder: Path, fault: Fault, after: int, counter: Counter) -> Callable[[], None]:
    """Return a function that makes the disk below `folder` fail, in the process that calls it.

    Args:
        folder: Existing folder.
        fault: Kind of failure.
        after: Number of operations before the first that fails.
        counter: Counter of the operations.
    """
    name = os.fsencode(os.path.realpath(folder) + os.sep)

    def fail() -> None:
        pause = ctypes.c_long(round(fault.pause * 1e6))
        ctypes.CDLL(None).stress_disk(
            *(name, fault.kinds, fault.number, ctypes.c_long(after), ctypes.c_long(fault.times), pause),
            ctypes.byref(counter.cell),
        )

    return fail
