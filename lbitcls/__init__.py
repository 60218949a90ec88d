"""Train image classifiers with 2- to 8-bit weights and activations from one config file.

Importing the package is cheap: it loads neither PyTorch nor the registries. The public API lives in the
subpackages: models, datasets, quant, apis and utils.
"""

from lbitcls.version import __version__

__all__ = ["__version__"]
