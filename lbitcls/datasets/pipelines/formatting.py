"""Final steps of a pipeline: conversion to tensors, and selection of the batch's keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbitcls.datasets.pipelines.transform import BatchDraw, Draw, Transform
from lbitcls.registry import PIPELINES
from lbitcls.utils.errors import ConfigError, suggest


def to_float(img: Tensor) -> Tensor:
    """Convert bytes to float32 in [0, 1]; return a float image unchanged."""
    if img.dtype == torch.uint8:
        return img.contiguous().to(torch.float32).div_(255)
    return img.to(torch.float32)


def _present(step: str, key: str, results: dict[str, Any]) -> Any:
    if key not in results:
        raise ConfigError(f"{step}: a sample has no '{key}'{suggest(key, results)} It has: {', '.join(results)}.")
    return results[key]


def texts(step: Transform, key: str, value: Any) -> tuple[str, ...]:
    """Return `value` as a tuple of names; raise `ConfigError` if it is not a list of names."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{type(step).__name__}: {key} must be a list of names; got {value!r}.")
    return tuple(value)


@PIPELINES.register_module()
class ImageToTensor(Transform):
    """Convert images to float tensors: bytes not processed by `Normalize` become float32 in [0, 1], (C, H, W).

    Args:
        keys: Keys of the images in the sample's dict.
    """

    deterministic = True

    def __init__(self, keys: Sequence[str] = ("img",)) -> None:
        self.keys = texts(self, "keys", keys)

    @property
    def batchwise(self) -> bool:  # type: ignore[override]
        return self.keys == ("img",)

    def process(self, results: dict[str, Any], draw: Draw) -> dict[str, Any]:
        for key in self.keys:
            results[key] = to_float(_present("ImageToTensor", key, results))
        return results

    def apply_batch(self, imgs: Tensor, draw: BatchDraw) -> Tensor:
        return to_float(imgs)


@PIPELINES.register_module()
class ToTensor(Transform):
    """Convert numbers, sequences and arrays to tensors; an image becomes float, as in `ImageToTensor`.

    Args:
        keys: Keys of the sample's dict.
    """

    deterministic = True

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = texts(self, "keys", keys)

    @property
    def batchwise(self) -> bool:  # type: ignore[override]
        return set(self.keys) <= {"img", "gt_label"}

    def process(self, results: dict[str, Any], draw: Draw) -> dict[str, Any]:
        for key in self.keys:
            value = _present("ToTensor", key, results)
            results[key] = to_float(value) if key == "img" else torch.as_tensor(np.asarray(value))
        return results

    def apply_batch(self, imgs: Tensor, draw: BatchDraw) -> Tensor:
        return to_float(imgs) if "img" in self.keys else imgs


@PIPELINES.register_module()
class Collect(Transform):
    """Keep only the model's inputs.

    Args:
        keys: Entries of the sample's dict to keep; `'img'` must be one of them.
        meta_keys: Entries to put into a dict under `img_metas`: `filename`, `ori_shape` (H, W, C) or `img_shape`.
    """

    deterministic = True

    def __init__(self, keys: Sequence[str], meta_keys: Sequence[str] = ()) -> None:
        self.keys, self.meta_keys = texts(self, "keys", keys), texts(self, "meta_keys", meta_keys)
        if "img" not in self.keys:
            raise ConfigError(f"Collect: keys must be a list of the model's inputs, with 'img'; got {keys!r}.")

    @property
    def batchwise(self) -> bool:  # type: ignore[override]
        return set(self.keys) <= {"img", "gt_label"} and not self.meta_keys

    def process(self, results: dict[str, Any], draw: Draw) -> dict[str, Any]:
        collected = {key: _present("Collect", key, results) for key in self.keys}
        if self.meta_keys:
            channels, height, width = results["img"].shape
            known = {**results, "img_shape": (height, width, channels)}
            collected["img_metas"] = {key: _present("Collect", key, known) for key in self.meta_keys}
        return collected

    def apply_batch(self, imgs: Tensor, draw: BatchDraw) -> Tensor:
        return imgs
