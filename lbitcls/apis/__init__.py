"""What the commands do, as functions."""

from importlib import import_module
from typing import Any

_HOME = {
    "train_classifier": "lbitcls.apis.train",
    "test_classifier": "lbitcls.apis.test",
    "test_model": "lbitcls.apis.test",
    "evaluate": "lbitcls.core.evaluation",
    "init_model": "lbitcls.apis.inference",
    "inference_model": "lbitcls.apis.inference",
    "show_result": "lbitcls.apis.inference",
    "show_result_pyplot": "lbitcls.apis.inference",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'lbitcls.apis' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
