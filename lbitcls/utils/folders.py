"""Atomic writing of folders: a new one appears whole, and replaces an old one in two renames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lbitcls.utils.files import sync_folder
from lbitcls.utils.temporary import new_temporary_folder


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill an empty temporary folder next to `path`, and only then put it in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_temporary_folder(path.parent) as draft:
        write(draft)
        move_folder(draft, path)


def move_folder(folder: Path, path: Path) -> None:
    """Rename a folder to `path`; a folder that is there is replaced, and removed last."""
    with new_temporary_folder(path.parent) as aside:
        old = aside / path.name
        if path.exists():
            path.rename(old)
        try:
            folder.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        sync_folder(path.parent)
