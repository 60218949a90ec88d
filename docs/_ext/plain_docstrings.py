"""Convert docstrings, plain text with Markdown's `code` and indented blocks, to reStructuredText.

Napoleon handles Google-style sections, docutils examples (`>>>`).
"""

from __future__ import annotations

import re
from typing import Any

SECTION = re.compile(r"^(Args|Attributes|Example|Examples|Raises|Returns|Yields):$")
LIST_ITEM = re.compile(r"^\s*([-*]|\d+\.) ")


def to_rst(lines: list[str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText.

    Example:
        >>> to_rst(["Of `x`, |x| and *x*:", "", "    a = `b`"])
        ['Of ``x``, \\\\|x\\\\| and \\\\*x\\\\*:', '', '.. code-block:: text', '', '    a = `b`']
    """
    made: list[str] = []
    section = item = verbatim = example = in_list = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        blank_before = bool(made) and not made[-1].strip()
        if not line.strip():
            example = False
        elif not indent:
            section, item, verbatim = bool(SECTION.match(line)), bool(LIST_ITEM.match(line)), False
        example = example or line.lstrip().startswith(">>> ")
        if line.strip() and not (example or section or item) and blank_before and indent:
            made += [] if verbatim else [".. code-block:: text", ""]
            verbatim = True
        if LIST_ITEM.match(line) and not (example or section or in_list or blank_before):
            made.append("")  # Markdown begins a list without a blank line
        in_list = bool(item and line.strip())
        made.append(line if verbatim or example else inline(line))
    return made


def inline(line: str) -> str:
    """Convert one line of text: code stays code, everything else is literal text."""
    parts = re.split(r"(`[^`]+`)", line)
    for i, part in enumerate(parts):
        if i % 2:
            after = parts[i + 1][:1]
            parts[i] = f"`{part}`" + ("\\ " if after.isalnum() else "")
        else:
            parts[i] = re.sub(r"(?<!^)([*|])|(?<=\w)(_)(?=\W|$)", r"\\\1\2", part)
    return "".join(parts)


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert docstrings before napoleon reads them."""
    lines[:] = to_rst(lines)
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")  # napoleon would take what stands before a colon of the first line for a type


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
