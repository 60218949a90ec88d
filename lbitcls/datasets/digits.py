"""Handwritten digits bundled with the package, so that a first run needs no network.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, CC BY
4.0; see `data/README.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from lbitcls.datasets.base import MemoryDataset, resolve_split
from lbitcls.datasets.root import Roots
from lbitcls.registry import DATASETS

_TRAIN = 1437
_WHITE = 16  # largest value in the file


@DATASETS.register_module()
class Digits(MemoryDataset):
    """1,797 grayscale images of digits, 8×8 pixels: 1,437 to train, 360 (36 per class) to test.

    The split is fixed. Images are uint8 (1, 8, 8) with values 0-255; the training split has mean 0.305 and
    standard deviation 0.376, in units of 0-1.

    Args:
        pipeline: Steps, as in a config.
        split: `'train'` (default) or `'test'`; alternatively `train` (bool) or `test_mode` (bool).
        data_root: Not needed; the images come with the package.
    """

    CLASSES = tuple("0123456789")

    def __init__(
        self,
        pipeline: Sequence[Any] = (),
        split: str | None = None,
        train: bool | None = None,
        test_mode: bool | None = None,
        data_root: Roots = None,
    ) -> None:
        split = resolve_split("Digits", split, train, test_mode)
        with (files("lbitcls.datasets") / "data" / "digits.npz").open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            images, labels = stored["images"], stored["labels"]
        part = slice(None, _TRAIN) if split == "train" else slice(_TRAIN, None)
        scaled = np.round(images[part].astype(np.float32) * (255 / _WHITE)).astype(np.uint8)
        super().__init__(torch.from_numpy(scaled)[:, None], labels[part], pipeline, name=f"Digits {split}")
