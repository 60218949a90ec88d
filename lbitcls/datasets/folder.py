"""Images in folders: a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lbitcls.datasets.base import FileDataset, read_class_names
from lbitcls.datasets.listing import IMAGE_SUFFIXES, class_folders, images_of_classes
from lbitcls.datasets.root import Roots, find_data, search_roots
from lbitcls.registry import DATASETS
from lbitcls.utils.errors import ConfigError, DataError, suggest
from lbitcls.utils.files import read_lines

_DIGITS = 18  # of a label; Python reads no number of thousands
NO_DOWNLOAD = "It is not downloaded: put it there yourself."


def read_class_folders(folder: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Paths and labels of the images in the class folders of `folder`.

    Args:
        folder: holds the class folders.
        names: of the class folders, in order of their labels.

    Raises:
        DataError: no class folders, one that `names` does not hold, or one without images.
    """
    present = class_folders(folder)
    if not present:
        raise DataError(f"{folder} has no class folders; a folder of images for each class is expected in it.")
    label_of = {name: label for label, name in enumerate(names)}
    found = images_of_classes(folder, present)
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        if name not in label_of:
            raise DataError(f"{folder / name} is a folder of no class in classes{suggest(name, names)}")
        images = found[name]
        if not images:
            raise DataError(f"{folder / name} has no images ({', '.join(IMAGE_SUFFIXES)}); remove it or fill it.")
        paths += images
        labels += [label_of[name]] * len(images)
    return paths, labels


def read_list(path: Path, prefix: Path, classes: int) -> tuple[list[str], list[int]]:
    """Paths and labels from a list file, `path label` in each line.

    Args:
        path: the list file; its paths may hold spaces, empty lines count for nothing.
        prefix: folder to which the paths are relative.
        classes: number of classes; labels are below it.

    Raises:
        DataError: a line that is something else; the message gives its number.
    """
    paths, labels = [], []
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list file {path} cannot be read as UTF-8 text: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not (label.isascii() and label.isdigit()):
            raise DataError(f"{path}:{number}: expected 'path label', the label a number; got {line.strip()!r:.200}.")
        if len(label) > _DIGITS or int(label) >= classes:
            raise DataError(f"{path}:{number}: label {label:.20} is not below {classes}, the number of classes.")
        paths.append(os.path.join(prefix, name.strip()))
        labels.append(int(label))
    if not paths:
        raise DataError(f"{path} lists no images; each line is 'path label'.")
    return paths, labels


@DATASETS.register_module()
class ImageFolder(FileDataset):
    """A folder of images for each class; labels follow the sorted names of the folders.

    Args:
        data_prefix: the folder that holds the class folders, looked for as `lbitcls.datasets.root` says.
        pipeline: steps, as in a config.
        ann_file: a list file with `path label` in each line, paths relative to `data_prefix`: only these images
            are taken, and `classes` is needed. It is looked for like `data_prefix`, then in that folder.
        classes: names of the class folders in the order of their labels (a list, or a file with a name per
            line), where the sorted order is not wanted.
        on_error: `'raise'` or `'skip'` images that cannot be read.
        in_memory: keep all images decoded; they need one size.
        test_mode: part of older configs; it changes nothing.
        data_root: see `build_dataset`.
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
            raise ConfigError(f"{owner}: the labels in ann_file are of no known classes; give their names as classes.")
        names = given or class_folders(folder)
        if ann_file:
            paths, labels = read_list(find_data(ann_file, [*roots, folder], owner, NO_DOWNLOAD), folder, len(names))
        else:
            paths, labels = read_class_folders(folder, names)
        super().__init__(paths, labels, pipeline, names, on_error, in_memory)
