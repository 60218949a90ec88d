"""Samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from lbitcls.utils.errors import DataError


def collate(batch: Sequence[dict[str, Any]], samples_per_gpu: int = 1) -> dict[str, Any]:
    """Make one batch of samples.

    Args:
        batch: the samples: dicts with equal keys.
        samples_per_gpu: part of the call as older scripts write it; the whole of `batch` becomes one batch.

    Returns:
        A dict of the same keys: tensors and arrays are stacked to (N, ...), numbers become a tensor (N,),
        anything else (file names, metas) a list of length N.

    Raises:
        DataError: tensors of different shapes.

    Example:
        >>> collate([{"img": torch.zeros(3, 8, 8), "gt_label": 1}])["img"].shape
        torch.Size([1, 3, 8, 8])
    """
    if not batch:
        raise DataError("a batch needs at least one sample; got an empty list.")
    return {key: _collate_values(key, [sample[key] for sample in batch]) for key in batch[0]}


def _collate_values(key: str, values: list[Any]) -> Any:
    if not isinstance(values[0], (torch.Tensor, np.ndarray, np.number, int, float)):
        return values
    shapes = sorted({tuple(np.shape(value)) for value in values})
    if len(shapes) > 1:
        raise DataError(
            f"the samples of a batch differ in the shape of '{key}': {', '.join(map(str, shapes))}. "
            "Let a step of the pipeline fix the size: Resize(size=(h, w)), CenterCrop, RandomResizedCrop."
        )
    if isinstance(values[0], float):
        return torch.tensor(values, dtype=torch.float32)
    return default_collate(values)
