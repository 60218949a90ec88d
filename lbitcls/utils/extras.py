"""Import of the packages that an extra of lbitcls installs."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType

from lbitcls.utils.errors import DependencyError


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module of an optional package and return it.

    Args:
        module: Full name of the module.
        extra: Extra of lbitcls that installs its package.
        purpose: Name of what needs it, which starts the message.

    Raises:
        DependencyError: The package is not installed.

    Example:
        >>> import_extra("json", "none", "A test").dumps([1])
        '[1]'
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a package's own deprecations are not the user's
            return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DependencyError(
            f"{purpose} needs the package {package}, which cannot be imported ({error}): "
            f"pip install 'lbitcls[{extra}]'."
        ) from error
