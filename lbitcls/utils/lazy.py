"""Lazy packages: public names are imported on first use, and type checkers and editors still know them.

The `__init__.py` of such a package lists its names once, as imports that only a type checker follows:

    if TYPE_CHECKING:
        from lbitcls.quant.quantizer import Quantizer as Quantizer
    else:
        __getattr__, __dir__, __all__ = exports(__name__)

`exports` reads the same lines, and imports a name's module when the name is asked for.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lbitcls.utils.errors import suggest


def exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for a package.

    Args:
        package: Full name of the package, `__name__` in its `__init__.py`.

    Raises:
        ImportError: The package was installed without its source.
    """
    homes = _listed(package)

    def get(name: str) -> Any:
        """Import a public name from its module."""
        if name in homes:
            return getattr(import_module(homes[name]), name)
        if not name.startswith("__") and find_spec(f"{package}.{name}") is not None:
            raise AttributeError(f"'{package}.{name}' is a module: import {package}.{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'{suggest(name, homes)}")

    def names() -> list[str]:
        """Return the public names, and the names imported so far."""
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names, sorted(homes)


def _listed(package: str) -> dict[str, str]:
    """Return the module of each name that the package imports for type checkers."""
    loader = getattr(sys.modules[package].__spec__, "loader", None)
    read = getattr(loader, "get_source", None)
    source = None if read is None else read(package)
    if source is None:
        raise ImportError(f"{package} needs the source of its __init__.py beside the compiled file; install it whole.")
    blocks = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}
