"""Ants and bees, the data set of PyTorch's transfer-learning tutorials: 244 images to train, 153 to validate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lbitcls.datasets.base import FileDataset
from lbitcls.datasets.folder import read_class_folders
from lbitcls.datasets.root import Roots, download_root, locate, missing, search_roots
from lbitcls.registry import DATASETS
from lbitcls.utils.cache import exclusive, remove_partial
from lbitcls.utils.errors import ConfigError, DataError

_NAMES = ("hymenoptera_data", "hymenoptera_256")  # the tutorials' own, and one with smaller images
_URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
_SHA256 = "fbc41b31d544714d18dd1230b1e2b455e1557766e13e67f9f5a7a23af7c02209"


@DATASETS.register_module()
class Hymenoptera(FileDataset):
    """Photos of ants (label 0) and bees (1).

    Args:
        split: `'train'` (default) or `'val'`; alternatively `test_mode=True` for `'val'`.
        pipeline: Steps, as in a config.
        data_prefix: Folder that contains `train` and `val`; by default `hymenoptera_data` or `hymenoptera_256`, as a
            folder or an archive, searched for by the rule of `lbitcls.datasets.root`.
        download: Download the tutorials' archive (45 MiB) into the first data root if the data is not found.
        on_error: `'raise'` or `'skip'` for unreadable images.
        test_mode: Accepted for older configs; means `split='val'`.
        data_root: See `build_dataset`.
    """

    CLASSES: Any = ("ants", "bees")

    def __init__(
        self,
        split: str | None = None,
        pipeline: Sequence[Any] = (),
        data_prefix: str | None = None,
        download: bool = False,
        on_error: str = "raise",
        test_mode: bool | None = None,
        data_root: Roots = None,
    ) -> None:
        if split not in (None, "train", "val") or (split, test_mode) in (("train", True), ("val", False)):
            raise ConfigError(f"Hymenoptera: split must be 'train' or 'val'; got {split!r}, test_mode={test_mode!r}.")
        name = split or ("val" if test_mode else "train")
        roots = search_roots(data_root)
        folder = self._find(data_prefix, name, roots)
        if folder is None and download:
            _download(download_root(roots))
            folder = self._find(None, name, roots)
        if folder is None:
            wanted = Path(data_prefix or _NAMES[0], name)
            hint = f"A folder or archive {_NAMES[1]} is accepted too. download=True downloads it."
            raise DataError(missing(wanted, roots, "Hymenoptera", hint))
        paths, labels = read_class_folders(folder, self.CLASSES)
        kept = [i for i, path in enumerate(paths) if not path.lower().endswith(".gif")]  # an image included by mistake
        super().__init__([paths[i] for i in kept], [labels[i] for i in kept], pipeline, on_error=on_error)

    @staticmethod
    def _find(prefix: str | None, split: str, roots: list[Path]) -> Path | None:
        found = (locate(Path(name, split), roots) for name in ([prefix] if prefix else _NAMES))
        return next((folder for folder in found if folder is not None), None)


def _download(root: Path) -> None:
    import torch

    target = root / f"{_NAMES[0]}.zip"
    try:
        with exclusive(target):
            if not target.is_file():
                remove_partial(target)
                torch.hub.download_url_to_file(_URL, str(target), _SHA256, progress=False)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Hymenoptera: the download of {_URL} into {root} failed: {error}. Without a network, put a copy of the "
            "archive there."
        ) from error
