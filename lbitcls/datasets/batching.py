"""Collation of samples into batches, and scattering of batches over devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from lbitcls.utils.errors import DataError


def collate(batch: Sequence[dict[str, Any]], samples_per_gpu: int = 1) -> dict[str, Any]:
    """Collate samples into one batch.

    Args:
        batch: Samples, dicts with equal keys.
        samples_per_gpu: Accepted for older scripts; all of `batch` becomes one batch.

    Returns:
        A dict with the same keys: tensors and arrays are stacked to (N, ...), numbers become a tensor (N,),
        anything else (file names, metas) a list of length N.

    Raises:
        DataError: Tensors have different shapes.

    Example:
        >>> collate([{"img": torch.zeros(3, 8, 8), "gt_label": 1}])["img"].shape
        torch.Size([1, 3, 8, 8])
    """
    if not batch:
        raise DataError("a batch must have at least one sample; got an empty list.")
    return {key: _collate_values(key, [sample[key] for sample in batch]) for key in batch[0]}


def scatter(batch: Mapping[str, Any], devices: Sequence[torch.device | str | int]) -> list[dict[str, Any]]:
    """Split a batch over devices, as `mmcv.parallel.scatter` does: consecutive parts of nearly equal size.

    Args:
        batch: Result of `collate`; its values have length N.
        devices: Devices, or GPU indices. A device that gets no sample is left out.

    Returns:
        For each device, a dict with the same keys, its tensors on that device.

    Raises:
        DataError: `devices` is empty, or the values differ in length.

    Example:
        >>> [part["img"].shape[0] for part in scatter({"img": torch.zeros(5, 3, 8, 8)}, ["cpu", "cpu"])]
        [3, 2]
    """
    lengths = {key: len(value) for key, value in batch.items()}
    if not devices or len(set(lengths.values())) != 1:
        raise DataError(
            f"scatter needs a batch whose values have one length, and devices; got lengths {lengths} and {devices!r}."
        )
    parts = np.array_split(np.arange(next(iter(lengths.values()))), len(devices))
    return [
        {key: _moved(value[part[0] : part[-1] + 1], torch.device(device)) for key, value in batch.items()}
        for part, device in zip(parts, devices, strict=True)
        if len(part)
    ]


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _collate_values(key: str, values: list[Any]) -> Any:
    if not isinstance(values[0], (torch.Tensor, np.ndarray, np.number, int, float)):
        return values
    shapes = sorted({tuple(np.shape(value)) for value in values})
    if len(shapes) > 1:
        raise DataError(
            f"the samples of a batch differ in the shape of '{key}': {', '.join(map(str, shapes))}. "
            "Add a step that fixes the size to the pipeline: Resize(size=(h, w)), CenterCrop, RandomResizedCrop."
        )
    if isinstance(values[0], float):
        return torch.tensor(values, dtype=torch.float32)
    return default_collate(values)
