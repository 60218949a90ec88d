"""A first config for a folder of images: surveys the folder and writes the config."""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.starter.first_config import init_config as init_config
else:
    __getattr__, __dir__, __all__ = exports(__name__)
