"""Data sets, pipelines and loaders; public names are imported on first use."""

from importlib import import_module
from typing import Any

_HOME = {
    "build_dataset": "lbitcls.datasets.builder",
    "build_dataloader": "lbitcls.datasets.loader",
    "collate": "lbitcls.datasets.batching",
    "scatter": "lbitcls.datasets.batching",
    "ImageNet": "lbitcls.datasets.imagenet",
}
__all__ = ["ImageNet", "build_dataloader", "build_dataset", "collate", "scatter"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'lbitcls.datasets' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
