"""Names of ImageNet's classes, bundled with the package; PyTorch is not imported."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the 1,000 class names in label order, as torchvision spells them."""
    text = (files("lbitcls.datasets") / "data" / "imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
