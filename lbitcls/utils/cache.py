"""Files that are made once and kept: where, and by one process at a time."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lbitcls.utils.temporary import hold


def cache_folder(kind: str) -> Path:
    """`$XDG_CACHE_HOME/lbitcls/<kind>` (`~/.cache/…`)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lbitcls" / kind


@contextmanager
def exclusive(target: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock beside `target`, so that one process at a time makes it.

    Args:
        target: what is made.
        wait: for another process that holds the lock; False: give False then.
    """
    import fcntl

    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(target.name + ".lock")
    # Not through a link that somebody put there, nor on a pipe that waits.
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        if wait:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield wait or hold(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(target: Path) -> None:
    """Remove what killed downloads of `target` by `torch.hub` left beside it; call it while holding its lock."""
    for left in target.parent.glob(f"{glob.escape(target.name)}.*.partial"):
        left.unlink(missing_ok=True)
