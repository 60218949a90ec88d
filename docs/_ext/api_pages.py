"""Build a package's page of the API reference from its docstrings.

    .. package:: lbitcls.quant

lists the names that the package exports, then each of its modules with every public class and function.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from plain_docstrings import inline
from sphinx.util.docutils import SphinxDirective


def modules_of(package: str) -> list[str]:
    """Return the package and all modules in it."""
    found = importlib.import_module(package)
    inside = pkgutil.walk_packages(getattr(found, "__path__", []), f"{package}.")
    return [package, *sorted(info.name for info in inside)]


def offered(package: str) -> Iterator[tuple[str, str, str]]:
    """Return (name, module that defines it, first line of its docstring) for each name in a package's `__all__`."""
    module = importlib.import_module(package)
    for name in sorted(getattr(module, "__all__", ()), key=str.lower):
        value = getattr(module, name)
        home = f"{getattr(value, '__module__', package)}.{getattr(value, '__qualname__', name)}"
        yield name, home, (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def is_public(module: str) -> bool:
    """Return True if a module defines a public class or function."""
    members = vars(importlib.import_module(module)).items()
    return any(
        getattr(value, "__module__", None) == module and not name.startswith("_")
        for name, value in members
        if inspect.isclass(value) or inspect.isfunction(value)
    )


def page(package: str) -> Iterator[str]:
    """Return the page's reStructuredText."""
    if not hasattr(importlib.import_module(package), "__path__"):  # a module
        yield from (f".. automodule:: {package}", "   :members:", "")
        return
    yield from (f".. automodule:: {package}", "   :no-members:", "")
    names = list(offered(package))
    if names:
        yield from (f"``{package}`` itself offers", "", ".. list-table::", "   :widths: auto", "")
        for name, home, about in names:
            yield from (f"   * - :py:obj:`{name} <{home}>`", f"     - {inline(about)}")
    for module in modules_of(package):
        if module != package and is_public(module):
            yield from ("", module, "-" * len(module), "", f".. automodule:: {module}", "   :members:", "")


class Package(SphinxDirective):
    """Directive `.. package:: NAME`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the page."""
        for module in modules_of(self.arguments[0]):
            file = importlib.import_module(module).__file__
            self.env.note_dependency(str(file))
        return self.parse_text_to_nodes("\n".join(page(self.arguments[0])), allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("package", Package)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
