"""Steps that turn a file, an array or a sample's dict into the model's input tensor; `Compose` runs them."""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.datasets.pipelines.compose import Compose as Compose
else:
    __getattr__, __dir__, __all__ = exports(__name__)
