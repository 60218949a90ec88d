"""MNIST and FashionMNIST from idx files (plain or gzipped); torchvision downloads them."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets

from lbitcls.datasets.base import MemoryDataset, resolve_split
from lbitcls.datasets.root import Roots, download_root, locate, missing, search_roots
from lbitcls.registry import DATASETS
from lbitcls.utils.cache import exclusive
from lbitcls.utils.errors import DataError
from lbitcls.utils.files import open_regular

_FILES = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 8
_MOST_BYTES, _MOST_RATIO = 2**26, 100  # of an array: the larger one of both, in bytes and in sizes of its file


def read_idx(path: Path) -> np.ndarray:
    """Read the uint8 array of an idx file (a magic number, big-endian sizes, then the bytes), gzipped or not.

    Raises:
        DataError: The file is corrupt or has another content.
    """
    try:
        with open_regular(path) as file:
            content: gzip.GzipFile | io.FileIO = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            head = content.read(4)
            dims = head[3] if len(head) == 4 else 0
            sizes = content.read(4 * dims)
            is_idx = head[:3] == bytes((0, 0, _UNSIGNED_BYTE)) and dims > 0 and len(sizes) == 4 * dims
            shape = struct.unpack(f">{dims}i", sizes) if is_idx else ()
            count = math.prod(shape)
            stored = os.fstat(file.fileno()).st_size
            sides = math.prod(max(size, 1) for size in shape)  # NumPy limits this product, too
            if not is_idx or min(shape) < 0 or sides > max(_MOST_BYTES, _MOST_RATIO * stored):
                raise DataError(f"{path}: not an idx file of bytes, or larger than plausible ({stored} bytes).")
            values = content.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot read this file: {error}.") from error
    if len(values) != count:
        raise DataError(f"{path}: not a complete idx file of bytes ({stored} bytes).")
    return np.frombuffer(values, np.uint8).reshape(shape)


@DATASETS.register_module()
class MNIST(MemoryDataset):
    """Handwritten digits, 60,000 to train and 10,000 to test; grayscale 28×28, uint8 (1, 28, 28).

    Args:
        pipeline: Steps, as in a config.
        data_prefix: Folder of the idx files, or one that contains them in `raw/` or `MNIST/raw/`; by default `MNIST`,
            searched for by the rule of `lbitcls.datasets.root`.
        split: `'train'` (default) or `'test'`; alternatively `train` (bool) or `test_mode` (bool).
        download: Download the files into the first data root if they are not found.
        data_root: See `build_dataset`.
    """

    CLASSES: Any = tuple("0123456789")
    _reader: Any = torchvision.datasets.MNIST

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
        pair = self._find(data_prefix or owner, roots, split)
        if pair is None and download:
            pair = self._download(roots, split)
        if pair is None:
            hint = f"It must contain {_FILES[split]}-images-idx3-ubyte and -labels-idx1-ubyte, plain or .gz. "
            hint += "download=True downloads it."
            raise DataError(missing(data_prefix or owner, roots, owner, hint))
        images, labels = map(read_idx, pair)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(f"{pair[0]}: {images.shape} images do not match {labels.shape} labels of {pair[1]}.")
        # A copy: the array over the file's bytes is read-only.
        super().__init__(torch.from_numpy(images.copy())[:, None], labels, pipeline, name=f"{owner} {split}")

    def _find(self, prefix: str, roots: list[Path], split: str) -> tuple[Path, Path] | None:
        for below in (".", "raw", f"{type(self).__name__}/raw"):
            for suffix in ("", ".gz"):
                names = (f"{_FILES[split]}-{part}-ubyte{suffix}" for part in ("images-idx3", "labels-idx1"))
                images, labels = (locate(Path(prefix, below, name), roots) for name in names)
                if images and labels:
                    return images, labels
        return None

    def _download(self, roots: list[Path], split: str) -> tuple[Path, Path] | None:
        root = download_root(roots)
        try:
            with exclusive(root / type(self).__name__):
                self._reader(root, download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{type(self).__name__}: the download into {root} failed: {error}") from error
        return self._find(type(self).__name__, [root], split)


@DATASETS.register_module()
class FashionMNIST(MNIST):
    """Images of clothes in MNIST's format; its arguments are MNIST's."""

    CLASSES = tuple(torchvision.datasets.FashionMNIST.classes)
    _reader = torchvision.datasets.FashionMNIST
