"""Quantizers, quantized layers, and the model transformer; public names are imported when first asked for."""

from importlib import import_module
from typing import Any

_HOME = {
    "ModelTransformer": "transformer",
    "build_mtransformer": "transformer",
    "build_quant_layer": "methods",
    "register_method": "methods",
    "calibrate": "calibration",
    "named_quantizers": "calibration",
    "quantizer_parameters": "calibration",
    "refresh": "calibration",
    "regularization": "calibration",
    "set_quantization": "calibration",
    "uninitialized": "calibration",
    "model_size": "size",
    "Quantizer": "quantizer",
    "QParams": "spec",
    "select_kernels": "kernels",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'lbitcls.quant' has no attribute '{name}'")
    return getattr(import_module(f"lbitcls.quant.{_HOME[name]}"), name)
