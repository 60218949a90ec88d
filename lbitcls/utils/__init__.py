"""Helpers for all parts of the package; public names are imported on first use."""

from typing import Any

_HOME = {
    "Config": "lbitcls.utils.config",
    "load_checkpoint": "lbitcls.utils.checkpoint",
    "save_checkpoint": "lbitcls.utils.checkpoint",
}
__all__ = ["Config", "load_checkpoint", "save_checkpoint"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use, so that importing `lbitcls.utils` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'lbitcls.utils' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
