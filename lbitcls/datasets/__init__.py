"""Data sets, pipelines and loaders; public names are imported on first use."""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.datasets.batching import collate as collate
    from lbitcls.datasets.batching import scatter as scatter
    from lbitcls.datasets.builder import build_dataset as build_dataset
    from lbitcls.datasets.imagenet import ImageNet as ImageNet
    from lbitcls.datasets.loader import build_dataloader as build_dataloader
else:
    __getattr__, __dir__, __all__ = exports(__name__)
