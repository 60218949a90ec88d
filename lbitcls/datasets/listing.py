"""Which files of a folder are images; no PyTorch is needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from lbitcls.utils.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_logger = logging.getLogger("lbitcls")


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted; hidden ones are none.

    A link to a folder is one too, unless it leads to `folder` itself, to a folder that it lies in, or to a class folder
    that is there already.
    """
    with os.scandir(folder) as scan:
        entries = [entry for entry in scan if not entry.name.startswith(".") and _is_folder(entry)]
    seen = _lineage(folder)
    names: list[str] = []
    left_out: list[str] = []
    for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
        identity = _identity(entry.path)
        (left_out if identity in seen else names).append(entry.name)
        seen.add(identity)
    _say_left_out([os.path.join(folder, name) for name in left_out])
    return sorted(names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or leads to one; a link that leads to itself does not."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def images_of_classes(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Paths of the images of each class folder in `folder`, as `images_below` finds them.

    A link from a class folder to another one is left out, with a warning.
    """
    classes = {_identity(folder / name) for name in names}
    return {name: images_below(folder / name, classes) for name in names}


def images_below(folder: Path, elsewhere: Iterable[tuple[int, int]] = ()) -> list[str]:
    """Paths of the images in `folder` and its sub-folders, sorted.

    Links to files and to folders are followed, but each folder is entered once: a link to where the images are counted
    already, or to a folder that `folder` lies in, is left out, with a warning.

    Args:
        folder: where to begin.
        elsewhere: (device, inode) of folders whose images are counted otherwise.
    """
    seen = _lineage(folder).union(elsewhere)
    found, links = _walk(str(folder), seen)
    if not links:
        return found
    left_out = []
    while links:
        link = links.pop(0)
        if _identity(link) in seen:
            left_out.append(link)
            continue
        more, inner = _walk(link, seen)
        found += more
        links += inner
    _say_left_out(left_out)
    return sorted(found, key=lambda path: [(1, name) for name in path.split(os.sep)[:-1]] + [(0, path)])


def _walk(folder: str, seen: set[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """The images in `folder` and its sub-folders, and the links to folders there; `seen` gets what was entered."""
    found, links = [], []
    for parent, folders, names in os.walk(folder):
        identity = _identity(parent)
        if identity in seen and parent != folder:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
        found += [os.path.join(parent, name) for name in sorted(names) if is_image(name)]
    return found, links


def _lineage(folder: str | Path) -> set[tuple[int, int]]:
    """`folder` and all that it lies in."""
    real = Path(os.path.realpath(folder))
    return {_identity(above) for above in (real, *real.parents)}


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _say_left_out(links: Sequence[str]) -> None:
    if links:
        shown = ", ".join(links[:3]) + (", …" if len(links) > 3 else "")
        _say_once(f"Links to folders that are counted already are left out: {shown}.")


@cache
def _say_once(text: str) -> None:
    _logger.warning("%s", text)


class Paths:
    """Many paths in two arrays: a list of a million strings would be copied, page by page, into every worker process.

    Their lengths may differ without a cost: one that is long takes no more than its own bytes.

    Args:
        paths: as the file system has them.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())


def images_of(path: Path) -> list[str]:
    """Paths of the images in a folder and its sub-folders, sorted; of anything else the path itself.

    Raises:
        DataError: a folder without images.
    """
    if not path.is_dir():
        return [str(path)]
    found = images_below(path)
    if not found:
        raise DataError(f"the folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return found
