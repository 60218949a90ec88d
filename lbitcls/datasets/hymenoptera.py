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

_NAMES = ("hymenoptera_data", "hymenoptera_256")  # the tutorials' own, and one of smaller images
_URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
_SHA256 = "fbc41b31d544714d18dd1230b1e2b455e1557766e13e67f9f5a7a23af7c02209"


@DATASETS.register_module()
class Hymenoptera(FileDataset):
    """Photos of ants (label 0) and bees (1).

    Args:
        split: `'train'` (default) or `'val'`; or `test_mode=True` for `'val'`.
        pipeline: steps, as in a config.
        data_prefix: the folder that holds `train` and `val`; by default `hymenoptera_data` or `hymenoptera_256`,
            looked for, as folders or archives, as `lbitcls.datasets.root` says.
        download: fetch the tutorials' archive (45 MiB) when the data is nowhere, into the first data root.
        on_error: `'raise'` or `'skip'` images that cannot be read.
        test_mode: part of older configs: `split='val'`.
        data_root: see `build_dataset`.
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
            raise ConfigError(f"Hymenoptera: split is 'train' or 'val'; got {split!r} with test_mode={test_mode!r}.")
        name = split or ("val" if test_mode else "train")
        roots = search_roots(data_root)
        folder = self._find(data_prefix, name, roots)
        if folder is None and download:
            _download(download_root(roots))
            folder = self._find(None, name, roots)
        if folder is None:
            wanted = Path(data_prefix or _NAMES[0], name)
            hint = f"A folder or archive {_NAMES[1]} is taken too. download=True fetches it."
            raise DataError(missing(wanted, roots, "Hymenoptera", hint))
        paths, labels = read_class_folders(folder, self.CLASSES)
        kept = [i for i, path in enumerate(paths) if not path.lower().endswith(".gif")]  # a picture of an error
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
            f"Hymenoptera: the download of {_URL} into {root} failed: {error}. Without a network put the archive, "
            "fetched elsewhere, there."
        ) from error
