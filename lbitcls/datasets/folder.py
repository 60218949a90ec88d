"""Images in class folders."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lbitcls.datasets.base import FileDataset, read_class_names
from lbitcls.datasets.listing import IMAGE_SUFFIXES, Paths, class_folders, images_of_classes
from lbitcls.datasets.root import Roots, find_data, search_roots
from lbitcls.registry import DATASETS
from lbitcls.utils.errors import ConfigError, DataError, suggest
from lbitcls.utils.files import each_line

_DIGITS = 18  # longest label; Python refuses to parse numbers of thousands of digits
NO_DOWNLOAD = "It cannot be downloaded; put it there yourself."
Images = tuple[Sequence[str] | Paths, Sequence[int] | np.ndarray]
"""Paths of images, and their labels."""


def read_class_folders(folder: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the paths and labels of the images in the class folders of `folder`.

    Args:
        folder: Folder that contains the class folders.
        names: Names of the class folders, in label order.

    Raises:
        DataError: No class folders, one that is not in `names`, or one without images.
    """
    present = class_folders(folder)
    if not present:
        raise DataError(f"{folder} has no class folders; expected one folder of images per class.")
    label_of = {name: label for label, name in enumerate(names)}
    found = images_of_classes(folder, present)
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        if name not in label_of:
            raise DataError(f"the folder {folder / name} matches no name in classes{suggest(name, names)}")
        images = found[name]
        if not images:
            raise DataError(f"{folder / name} has no images ({', '.join(IMAGE_SUFFIXES)}); remove or fill it.")
        paths += images
        labels += [label_of[name]] * len(images)
    return paths, labels


def read_list(path: Path, prefix: Path, classes: int) -> tuple[Paths, np.ndarray]:
    """Return paths and labels, int64 (N,), from a list file with `path label` on each line.

    Args:
        path: List file; paths in it may contain spaces, and empty lines are ignored.
        prefix: Folder to which the paths are relative.
        classes: Number of classes; labels must be below it.

    Raises:
        DataError: A line has another form; the message gives its number.
    """
    labels = array("q")
    try:
        lines = each_line(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list file {path} cannot be read as UTF-8 text: {error}.") from error
    paths = Paths(_listed(path, lines, prefix, classes, labels))
    if not labels:
        raise DataError(f"{path} lists no images; each line must be 'path label'.")
    return paths, np.array(labels, np.int64)


def _listed(path: Path, lines: Iterable[str], prefix: Path, classes: int, labels: array[int]) -> Iterator[str]:
    """Yield the path in each line of a list file, and append its label to `labels`."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not (label.isascii() and label.isdigit()):
            raise DataError(f"{path}:{number}: expected 'path label' with an integer label; got {line.strip()!r:.200}.")
        if len(label) > _DIGITS or int(label) >= classes:
            raise DataError(f"{path}:{number}: label {label:.20} must be below {classes}, the number of classes.")
        labels.append(int(label))
        yield os.path.join(prefix, name.strip())


@DATASETS.register_module()
class ImageFolder(FileDataset):
    """One folder of images per class; labels follow the sorted folder names.

    Args:
        data_prefix: Folder that contains the class folders, searched for by the rule of `lbitcls.datasets.root`.
        pipeline: Steps, as in a config.
        ann_file: List file with `path label` on each line, paths relative to `data_prefix`: only these images are
            used, and `classes` is required. Searched for like `data_prefix`, then in that folder.
        classes: Names of the class folders in label order (a list, or a file with one name per line), if it is not
            the sorted order.
        on_error: `'raise'` or `'skip'` for unreadable images.
        in_memory: Keep all images decoded in memory; they must be of one size.
        test_mode: Accepted for older configs; has no effect.
        data_root: See `build_dataset`.
    """

    def __init__(
        self,
        data_prefix: str,
        pipeline: Sequence[Any] = (),
        ann_file: str | None = None,
        classes: Sequence[str] | str | None = None,
        on_error: str = "raise",
        in_memory: bool = False,
        test_mode: bool = False,
        data_root: Roots = None,
    ) -> None:
        owner, roots = type(self).__name__, search_roots(data_root)
        folder = find_data(data_prefix, roots, owner, NO_DOWNLOAD)
        given = read_class_names(classes)
        if ann_file and not given:
            raise ConfigError(f"{owner}: ann_file gives labels of unknown classes; list the class names as classes.")
        names = given or class_folders(folder)
        if ann_file:
            listed = find_data(ann_file, [*roots, folder], owner, NO_DOWNLOAD)
            found: Images = read_list(listed, folder, len(names))
        else:
            found = read_class_folders(folder, names)
        super().__init__(*found, pipeline, names, on_error, in_memory)
