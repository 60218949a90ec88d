"""Wording of docstrings and errors, as the style guide in CONTRIBUTING.md asks for it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("lbitcls", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
OPENINGS = re.compile(r"(What|Whether|How|As) ")
"""Openings of a first line that neither say what a thing is nor what it does."""
ARTICLES = re.compile(r"(What|Whether|How|As|The|An?) ")
"""Those of a function or a property, which begin with a verb or a noun."""
OLD_WORDS = re.compile(
    r"\b(please|invalid|afresh|anew|picture|integer file|is a number from|stands where)\b", re.IGNORECASE
)
DEMAND = re.compile(r"\b(must|needs?|expects|expected|accepts|replaces)\b")
"""Verb of the demand in `NAME must be …; got X.`"""


def texts(node: ast.AST) -> str:
    """Return the text of a string or f-string, with `{}` for its values."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join("{}" if isinstance(part, ast.FormattedValue) else texts(part) for part in node.values)
    return ""


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each raised error's message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            yield node.lineno, texts(node.exc.args[0])


def faults(code: str) -> list[str]:
    """Return the docstrings and messages of a module that the style guide forbids."""
    tree = ast.parse(code)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, kinds)):
        text = ast.get_docstring(node) or ""
        openings = OPENINGS if isinstance(node, (ast.Module, ast.ClassDef)) else ARTICLES
        if openings.match(text):
            found.append(f"{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}")
    for line, text in messages(tree):
        if OLD_WORDS.search(text) or ("; got " in text and not DEMAND.search(text)):
            found.append(f"{line}: {text}")
    return found


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ('def f():\n    """Whether it is."""', 1),
        ('class A:\n    """Box."""\n    def f(self):\n        """The box."""', 1),
        ('"""As it is."""\nraise E(f"{name} is a number from 1; got {value}.")', 2),
        ('raise E(f"{name} goes from 1; got {value}.")', 1),
        ('raise E(f"{name} must be an integer ≥ 1; " f"got {value}.")', 0),
    ],
)
def test_faults_are_found(code: str, number: int) -> None:
    assert len(faults(code)) == number


def test_docstrings_and_messages_follow_the_style_guide() -> None:
    found = [f"{path.relative_to(ROOT)}:{fault}" for path in FILES for fault in faults(path.read_text("utf-8"))]
    assert not found, "\n".join(found)
