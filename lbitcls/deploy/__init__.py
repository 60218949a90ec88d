"""From a trained model to an integer model that runs elsewhere; public names are imported when first asked for.

Running a model (`load`) imports neither PyTorch nor ONNX's tools, so that a program that only predicts starts quickly.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Engine": "runtime.engine",
    "load": "runtime.engine",
    "ModelInfo": "runtime.metadata",
    "read_info": "runtime.metadata",
    "time_models": "runtime.benchmark",
    "export_onnx": "export.onnx",
    "integer_model": "verification.integer",
    "IntegerBackbone": "export.integer_backbone",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'lbitcls.deploy' has no attribute '{name}'")
    return getattr(import_module(f"lbitcls.deploy.{_HOME[name]}"), name)
