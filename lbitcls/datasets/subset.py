"""Subset of a data set, as selected by `indices` or `exclude_indices` in its config section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lbitcls.datasets.base import BaseDataset
from lbitcls.utils.errors import ConfigError, DataError


class Subset(BaseDataset):
    """Selected samples of a data set, with its pipeline and class names.

    Args:
        dataset: Full data set.
        indices: Positions in `dataset`, from 0, in the desired order: a list, a tuple or a range.

    Raises:
        ConfigError: `indices` has another type or is empty.
        DataError: `dataset` lacks a position.

    Example:
        >>> from lbitcls.datasets import build_dataset
        >>> digits = build_dataset(dict(type="Digits", split="test", pipeline=[]))
        >>> len(Subset(digits, range(0, 360, 5)))
        72
    """

    def __init__(self, dataset: BaseDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = _checked(indices, dataset)
        super().__init__(dataset.labels[self.indices], [], dataset.CLASSES, dataset.on_error)
        self.pipeline = dataset.pipeline

    def describe(self, index: int) -> str:
        return self.dataset.describe(int(self.indices[index]))

    def info(self, index: int) -> dict[str, Any]:
        return self.dataset.info(int(self.indices[index]))

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Any]:
        return self.dataset.sample(seed, epoch, int(self.indices[index]))

    @property
    def batchwise(self) -> bool:
        return self.dataset.batchwise

    def batch(self, seed: int, epoch: int, indices: np.ndarray) -> dict[str, Any]:
        return self.dataset.batch(seed, epoch, self.indices[indices])


def select(
    dataset: BaseDataset, indices: Sequence[int] | None = None, exclude_indices: Sequence[int] | None = None
) -> BaseDataset:
    """Return the samples at `indices`, or all but those at `exclude_indices`; the data set itself if both are None.

    Raises:
        ConfigError: Both are given, one has another type or is empty, or no sample is left.
        DataError: `dataset` lacks a position.
    """
    if exclude_indices is None:
        return dataset if indices is None else Subset(dataset, indices)
    name = type(dataset).__name__
    if indices is not None:
        raise ConfigError(f"{name}: indices and exclude_indices exclude each other; give one of them.")
    kept = np.ones(len(dataset), dtype=bool)
    kept[_checked(exclude_indices, dataset, "exclude_indices")] = False
    if not kept.any():
        raise ConfigError(f"{name}: exclude_indices leaves none of its {len(dataset)} samples.")
    return Subset(dataset, np.flatnonzero(kept).tolist())


def _checked(indices: Sequence[int], dataset: BaseDataset, key: str = "indices") -> np.ndarray:
    name, given = type(dataset).__name__, f"{indices!r:.80}"
    whole = isinstance(indices, (list, tuple, range)) and all(type(index) is int for index in indices)
    if not whole or not len(indices):
        raise ConfigError(f"{name}: {key} must be a list, tuple or range of positions from 0; got {given}.")
    if min(indices) < 0 or max(indices) >= len(dataset):
        raise DataError(f"{name}: {key} must be positions from 0 to {len(dataset) - 1}; got {given}.")
    return np.asarray(indices, dtype=np.int64)
