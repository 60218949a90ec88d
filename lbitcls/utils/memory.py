"""Memory of the process: what the C library does with blocks that are freed."""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_KEPT = 2**30
"""Size of the largest block that is kept for the next one, in bytes."""
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Make glibc keep memory that is freed, for the blocks that follow; return whether it does.

    By default it returns large blocks to the operating system. A training step on a CPU frees and takes the same blocks
    again and again, and each time their pages are filled with zeros one by one, which takes up to a fifth of the step.
    Between steps the process now holds what a step needs. Variables by which a user sets these limits win; other
    C libraries have other limits, and do nothing.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
