"""Formulas as MathML, which browsers draw themselves: a page needs no script, no font and no network.

A formula is a fenced block of the language `math`, as on GitHub, in LaTeX.
"""

from __future__ import annotations

from typing import Any, NoReturn

from docutils import nodes
from math_core import LatexToMathML

CONVERTER = LatexToMathML(fancy_error=False)
"""Raises an error for LaTeX that it does not know, which ends the build."""


def inline(writer: Any, node: nodes.math) -> NoReturn:
    """Write a formula in a line of text."""
    writer.body.append(CONVERTER.convert_with_local_state(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> NoReturn:
    """Write a displayed formula, in a box that scrolls if the formula is wider than the page."""
    formula = CONVERTER.convert_with_local_state(node.astext(), displaystyle=True)
    writer.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
