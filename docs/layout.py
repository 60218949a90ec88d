"""Write the layout of the package, a line for each module, into docs/design.md: `make layout`.

    python docs/layout.py [--write]

A line contains the file's name and the first sentence of its docstring; a package's sentence is on its folder's line.
Without `--write` the layout is printed.
"""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "design.md"
BLOCK = re.compile(r"(<!-- layout: [^\n]*-->\n+```text\n)(.*?)(```\n)", re.DOTALL)
COLUMN, WIDTH = 32, 120


def layout(package: Path, depth: int = 0) -> Iterator[str]:
    """Yield the lines of a package: its own, its modules', its subpackages'."""
    yield from entry(f"{package.name}/", package / "__init__.py", depth)
    modules = sorted(path for path in package.glob("*.py") if path.name != "__init__.py")
    for module in modules:
        yield from entry(module.name, module, depth + 1)
    for folder in sorted(path.parent for path in package.glob("*/__init__.py")):
        yield from layout(folder, depth + 1)


def entry(name: str, file: Path, depth: int) -> list[str]:
    """Return the lines of a file: its name and, in a column, the summary of its docstring."""
    start = f"{'  ' * depth}{name} ".ljust(COLUMN)
    about = summary(file.read_text(encoding="utf-8"))
    return textwrap.wrap(about, WIDTH, initial_indent=start, subsequent_indent=" " * COLUMN) or [start.rstrip()]


def summary(code: str) -> str:
    """Return the first sentence of a module's docstring, up to its first semicolon.

    Example:
        >>> summary('"Grids of a method; see `spec`."'), summary('"Two. Sentences."'), summary("x = 1")
        ('Grids of a method', 'Two', '')
    """
    first = (ast.get_docstring(ast.parse(code)) or "").partition("\n\n")[0].replace("\n", " ")
    return re.split(r"; |\. |\.$", first)[0]


def updated(page: str, package: Path) -> str:
    """Return the page's text with the package's current layout."""
    lines = "".join(f"{line}\n" for line in layout(package))
    changed, count = BLOCK.subn(lambda block: f"{block[1]}{lines}{block[3]}", page)
    if count != 1:
        raise SystemExit(f"{PAGE} has {count} blocks of the layout (<!-- layout: … -->, then ```text), not 1.")
    return changed


def main() -> None:
    """Print the layout, or write it."""
    parser = argparse.ArgumentParser(description="The layout of the package, from the docstrings of its modules.")
    parser.add_argument("--write", action="store_true", help="write it into docs/design.md")
    package = ROOT / "lbitcls"
    if parser.parse_args().write:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), package), encoding="utf-8")
    else:
        print("\n".join(layout(package)))


if __name__ == "__main__":
    main()
