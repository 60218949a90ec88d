"""Classifiers and their parts: backbone, neck, head, loss. Nothing here depends on quantization."""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.models.builder import build_backbone as build_backbone
    from lbitcls.models.builder import build_classifier as build_classifier
    from lbitcls.models.builder import build_head as build_head
    from lbitcls.models.builder import build_loss as build_loss
    from lbitcls.models.builder import build_neck as build_neck
    from lbitcls.models.classifier import ImageClassifier as ImageClassifier
    from lbitcls.models.convert import convert_cifar_resnet as convert_cifar_resnet
else:
    __getattr__, __dir__, __all__ = exports(__name__)
