"""ImageNet in class folders, in one flat folder, or with a list file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lbitcls.datasets.base import FileDataset, read_class_names
from lbitcls.datasets.folder import NO_DOWNLOAD, Images, read_class_folders, read_list
from lbitcls.datasets.listing import class_folders, images_below
from lbitcls.datasets.names import imagenet_classes
from lbitcls.datasets.root import Roots, find_data, search_roots
from lbitcls.registry import DATASETS
from lbitcls.utils.errors import ConfigError, DataError

_CLASSES = 1000


class _LazyNames:
    """Descriptor for `ImageNet.CLASSES`, read on first use; an instance may override it."""

    def __get__(self, instance: Any, owner: Any = None) -> tuple[str, ...]:
        return imagenet_classes()


@DATASETS.register_module()
class ImageNet(FileDataset):
    """Images of the 1,000 ImageNet classes, or of others in the same layout.

    Without `ann_file`, `data_prefix` contains one folder per class (labels follow the sorted names), or exactly
    1,000 images, one per class, whose sorted names follow the labels.

    Args:
        data_prefix: Folder of the images, searched for by the rule of `lbitcls.datasets.root`.
        pipeline: Steps, as in a config.
        ann_file: List file with `path label` on each line, paths relative to `data_prefix`; searched for like
            `data_prefix`, then in that folder.
        classes: Class names (a list, or a file with one name per line), if they are not ImageNet's.
        on_error: `'raise'` or `'skip'` for unreadable images.
        in_memory: Keep all images decoded in memory; they must be of one size.
        test_mode: Accepted for older configs; has no effect.
        data_root: See `build_dataset`.
    """

    CLASSES: Any = _LazyNames()
    _needs_list = False

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
        owner = type(self).__name__
        if self._needs_list and not ann_file:
            raise ConfigError(f"{owner} needs ann_file, a list of 'path label' lines; use ImageNet to read folders.")
        roots = search_roots(data_root)
        folder = find_data(data_prefix, roots, owner, NO_DOWNLOAD)
        names = read_class_names(classes)
        if ann_file:
            listed = find_data(ann_file, [*roots, folder], owner, NO_DOWNLOAD)
            found: Images = read_list(listed, folder, len(names or imagenet_classes()))
        else:
            found, names = _read_folder(folder, names)
        super().__init__(*found, pipeline, names, on_error, in_memory)


def _read_folder(folder: Path, names: tuple[str, ...] | None) -> tuple[Images, tuple[str, ...] | None]:
    """Return the images and class names of a folder; the names are None for ImageNet's own."""
    folders = class_folders(folder)
    if folders:
        found = read_class_folders(folder, folders)
        if names is None and len(folders) != _CLASSES:
            names = tuple(folders)
        elif names is not None and len(names) != len(folders):
            raise DataError(f"{folder} has {len(folders)} class folders, but classes has {len(names)} names.")
        return found, names
    paths = images_below(folder)
    expected = len(names) if names else _CLASSES
    if len(paths) != expected:
        raise DataError(
            f"{folder} has no class folders and {len(paths)} images; expected class folders, or one image for "
            f"each of {expected} classes in the order of their names, or a list of 'path label' lines as ann_file."
        )
    return (paths, list(range(expected))), names


@DATASETS.register_module()
class ImageNetV1(ImageNet):
    """`ImageNet` with a required list file: `ann_file` has `path label` on each line.

    The arguments are those of `ImageNet`.
    """

    _needs_list = True
