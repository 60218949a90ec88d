"""Classifiers and their parts: backbone, neck, head, loss. Nothing here depends on quantization."""

from typing import Any

_HOME = {
    "build_backbone": "lbitcls.models.builder",
    "build_classifier": "lbitcls.models.builder",
    "build_head": "lbitcls.models.builder",
    "build_loss": "lbitcls.models.builder",
    "build_neck": "lbitcls.models.builder",
    "ImageClassifier": "lbitcls.models.classifier",
    "convert_cifar_resnet": "lbitcls.models.convert",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `lbitcls.models` itself does not load torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'lbitcls.models' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
