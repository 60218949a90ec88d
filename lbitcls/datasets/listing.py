"""Search for image files in folders, without importing PyTorch."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from lbitcls.utils.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_logger = logging.getLogger("lbitcls")


def is_image(name: str) -> bool:
    """Return True if a file name has an image suffix."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the class folders in `folder`, without hidden ones.

    A link to a folder counts as one, unless it leads to `folder` itself, to one of its parents, or to a class folder
    that is already listed.
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
    """Return True for a folder or a link to one; False for a link to itself."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def images_of_classes(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the image paths of each class folder in `folder`, as `images_below` finds them.

    A link from one class folder to another is left out, with a warning.
    """
    classes = {_identity(folder / name) for name in names}
    return {name: images_below(folder / name, classes) for name in names}


def images_below(folder: Path, elsewhere: Iterable[tuple[int, int]] = ()) -> list[str]:
    """Return the sorted paths of the images in `folder` and its subfolders.

    Links to files and folders are followed, but each folder is entered once: a link to a folder whose images are
    already counted, or to a parent of `folder`, is left out, with a warning.

    Args:
        folder: Folder to start from.
        elsewhere: (device, inode) of folders whose images are counted elsewhere.
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
    """Return the images in `folder` and its subfolders, and the links to folders; add visited folders to `seen`."""
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
    """Return the identities of `folder` and its parents."""
    real = Path(os.path.realpath(folder))
    return {_identity(above) for above in (real, *real.parents)}


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _say_left_out(links: Sequence[str]) -> None:
    if links:
        shown = ", ".join(links[:3]) + (", …" if len(links) > 3 else "")
        _say_once(f"Leaving out links to folders that are already counted: {shown}.")


@cache
def _say_once(text: str) -> None:
    _logger.warning("%s", text)


class Paths:
    """Many paths in two arrays: a list of a million strings would be copied, page by page, into every worker process.

    Lengths may differ at no cost: a long path uses only its own bytes.

    Args:
        paths: Paths as the file system reports them.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        joined, ends = bytearray(), array("q")
        for path in paths:
            joined += os.fsencode(path)
            ends.append(len(joined))
        self._ends, self._bytes = np.array(ends, np.int64), np.frombuffer(joined, np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())


def images_of(path: Path) -> list[str]:
    """Return the sorted paths of the images in a folder and its subfolders, or the path itself if it is not a folder.

    Raises:
        DataError: The folder contains no images.
    """
    if not path.is_dir():
        return [str(path)]
    found = images_below(path)
    if not found:
        raise DataError(f"the folder {path} contains no images ({', '.join(IMAGE_SUFFIXES)}).")
    return found
