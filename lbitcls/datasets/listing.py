"""Which files of a folder are images; no PyTorch is needed."""

from __future__ import annotations

import os
from pathlib import Path

from lbitcls.utils.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted; hidden ones are none."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def images_below(folder: Path) -> list[str]:
    """Paths of the images in `folder` and its sub-folders, sorted."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, name) for name in sorted(names) if is_image(name)]
    return found


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
