"""Helpers for all parts of the package; public names are imported on first use."""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.utils.checkpoint import load_checkpoint as load_checkpoint
    from lbitcls.utils.checkpoint import save_checkpoint as save_checkpoint
    from lbitcls.utils.config import Config as Config
else:
    __getattr__, __dir__, __all__ = exports(__name__)
