"""From a trained model to an integer model that runs elsewhere; public names are imported when first asked for.

Running a model (`load`) imports neither PyTorch nor ONNX's tools, so that a program that only predicts starts quickly.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Engine": "engine",
    "load": "engine",
    "ModelInfo": "metadata",
    "read_info": "metadata",
    "time_models": "benchmark",
    "export_onnx": "onnx",
    "integer_model": "integer",
    "IntegerBackbone": "integer_backbone",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'lbitcls.deploy' has no attribute '{name}'")
    return getattr(import_module(f"lbitcls.deploy.{_HOME[name]}"), name)
