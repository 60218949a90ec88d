"""Files that are made once and kept: where, and by one process at a time."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path


def cache_folder(kind: str) -> Path:
    """`<kind>` in the package's folder among the user's caches (Linux: `$XDG_CACHE_HOME/lbitcls`, `~/.cache/…`)."""
    return user_cache_path("lbitcls") / kind


@contextmanager
def exclusive(target: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock beside `target`, so that one process at a time makes it.

    Args:
        target: what is made.
        wait: for another process that holds the lock; False: give False then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(target.name + ".lock"))
    with suppress(Timeout):
        lock.acquire(timeout=-1 if wait else 0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def remove_partial(target: Path) -> None:
    """Remove what killed downloads of `target` by `torch.hub` left beside it; call it while holding its lock."""
    for left in target.parent.glob(f"{glob.escape(target.name)}.*.partial"):
        left.unlink(missing_ok=True)
