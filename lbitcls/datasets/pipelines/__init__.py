"""Steps that turn a file, an array or a sample's dict into the model's input tensor; `Compose` runs them."""

from typing import Any

__all__ = ["Compose"]


def __getattr__(name: str) -> Any:
    """Import `Compose` on first use."""
    if name != "Compose":
        raise AttributeError(f"module 'lbitcls.datasets.pipelines' has no attribute '{name}'")
    from lbitcls.datasets.pipelines.compose import Compose

    return Compose
