"""Image size and channels according to a config, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SIZING = ("CenterCrop", "Resize", "Fit", "RandomCrop", "RandomResizedCrop", "Pad")
_CHANNELS = {"Digits": 1, "MNIST": 1, "FashionMNIST": 1, "CIFAR10": 3, "CIFAR100": 3}
_SIDES = {"Digits": 8, "MNIST": 28, "FashionMNIST": 28, "CIFAR10": 32, "CIFAR100": 32}


def section_size(section: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (H, W) of the images in a part of `data`: from the last resizing step, else the data set's own size.

    None if neither determines it.
    """
    for step in reversed(section.get("pipeline") or []):
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind == "PretrainedPreprocessing":
            from lbitcls.datasets.pipelines.compose import build_transform

            preprocessing: Any = build_transform(step)
            return preprocessing.crop_size
        size = step.get("crop_size", step.get("size")) if kind in _SIZING else None
        if size:
            height, width = (size, size) if isinstance(size, int) else size
            return height, width if width > 0 else height
    side = _SIDES.get(str(section.get("type")))
    return None if side is None else (side, side)


def section_channels(section: Mapping[str, Any]) -> int | None:
    """Return the image channels in a part of `data`: from the last step that sets them, else the data set; or None."""
    for step in reversed(section.get("pipeline") or []):
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind == "PretrainedPreprocessing":
            return 3
        if kind == "Normalize" and isinstance(step.get("mean"), (list, tuple)):
            return len(step["mean"])
        if kind == "LoadImageFromFile" and not str(step.get("color_type", "color")).startswith("unchanged"):
            return 1 if str(step.get("color_type", "color")).startswith("grayscale") else 3
    return _CHANNELS.get(str(section.get("type")))


def natural_size(cfg: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Return (H, W) of the images in a config, from the first part that determines it: `test`, `val` or `train`."""
    data = (cfg or {}).get("data") or {}
    sizes = (section_size(data[split]) for split in ("test", "val", "train") if isinstance(data.get(split), Mapping))
    return next((size for size in sizes if size is not None), None)
