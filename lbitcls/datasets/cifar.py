"""CIFAR-10 and CIFAR-100 from the published files; torchvision verifies their MD5 and reads them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets

from lbitcls.datasets.base import MemoryDataset, resolve_split
from lbitcls.datasets.root import Roots, download_root, locate, missing, search_roots
from lbitcls.registry import DATASETS
from lbitcls.utils.cache import exclusive
from lbitcls.utils.errors import DataError


@DATASETS.register_module()
class CIFAR10(MemoryDataset):
    """Small photos, 50,000 to train and 10,000 to test; RGB 32×32, uint8 (3, 32, 32).

    Args:
        pipeline: Steps, as in a config.
        data_prefix: Folder `cifar-10-batches-py`, or one that contains it or the published archive
            `cifar-10-python.tar.gz`; by default searched for by the rule of `lbitcls.datasets.root`.
        split: `'train'` (default) or `'test'`; alternatively `train` (bool) or `test_mode` (bool).
        download: Download the files into the first data root if they are not found.
        data_root: See `build_dataset`.
    """

    _reader: Any = torchvision.datasets.CIFAR10

    def __init__(
        self,
        pipeline: Sequence[Any] = (),
        data_prefix: str | None = None,
        split: str | None = None,
        train: bool | None = None,
        test_mode: bool | None = None,
        download: bool = False,
        data_root: Roots = None,
    ) -> None:
        owner = type(self).__name__
        split = resolve_split(owner, split, train, test_mode)
        roots = search_roots(data_root)
        folder = self._find(data_prefix, roots)
        if folder is None and not download:
            name = data_prefix or self._reader.base_folder
            raise DataError(missing(name, roots, owner, "download=True downloads it.", archive=self._archive))
        stored = self._read(folder.parent if folder else download_root(roots), split, fetch=folder is None)
        images = torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous()
        super().__init__(images, stored.targets, pipeline, stored.classes, name=f"{owner} {split}")

    @property
    def _archive(self) -> str:
        """Stem of the published archive's file name."""
        return self._reader.filename.partition(".")[0]

    def _find(self, prefix: str | None, roots: list[Path]) -> Path | None:
        """Find the folder of the batches."""
        base = self._reader.base_folder
        found = locate(Path(prefix or ".", base), roots, self._archive)
        if found is None and prefix and Path(prefix).name == base:
            found = locate(prefix, roots, self._archive)
        return found

    def _read(self, root: Path, split: str, fetch: bool) -> Any:
        try:
            with (
                warnings.catch_warnings(),
                exclusive(root / self._reader.base_folder) if fetch else nullcontext(),
            ):
                # NumPy 2.4 deprecates a detail of these files' 2009 pickle format.
                warnings.filterwarnings("ignore", message=".*align should be passed as Python or NumPy boolean")
                return self._reader(root, train=split == "train", download=fetch)
        except (RuntimeError, OSError) as error:
            act = "the download failed" if fetch else "the files were found, but torchvision rejects them"
            raise DataError(f"{type(self).__name__}: {act} ({root}): {error}") from error


@DATASETS.register_module()
class CIFAR100(CIFAR10):
    """`CIFAR10` with 100 classes (the fine labels), from `cifar-100-python`."""

    _reader = torchvision.datasets.CIFAR100
