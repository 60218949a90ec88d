"""Atomic writing of folders: a new one appears whole, and replaces an old one in two renames."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from lbitcls.utils.files import sync_folder
from lbitcls.utils.temporary import temporary_name


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill an empty temporary folder next to `path`, and only then put it in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = temporary_name(path.parent)
    draft.mkdir()
    try:
        write(draft)
        move_folder(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def move_folder(folder: Path, path: Path) -> None:
    """Rename a folder to `path`; a folder that is there is replaced, and removed last."""
    old = temporary_name(path.parent)
    if path.exists():
        path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)
