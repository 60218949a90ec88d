"""What the commands do, as functions."""

from importlib import import_module
from typing import Any

_HOME = {
    "train_classifier": "lbitcls.workflows.training",
    "test_classifier": "lbitcls.workflows.testing",
    "test_model": "lbitcls.workflows.testing",
    "evaluate": "lbitcls.core.evaluation",
    "init_model": "lbitcls.inference.api",
    "inference_model": "lbitcls.inference.api",
    "show_result": "lbitcls.inference.api",
    "show_result_pyplot": "lbitcls.inference.api",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'lbitcls.apis' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
