"""Names of ImageNet's classes, which the package carries; no PyTorch is needed."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 class names in order of their labels, as torchvision has them."""
    text = (files("lbitcls.datasets") / "data" / "imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
