"""The tables of the tutorials' lines in docs/migration.md: what they write is there, and nothing typed is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from blocks import ROOT
from commands import check_python

from lbitcls import registry
from lbitcls.quant.methods import METHODS

PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Three tutorials") : PAGE.index("## What was verified")]
ROWS = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| ") and "---" not in line]
HERE = [code for row in ROWS for code in re.findall(r"`([^`]+)`", row[1])]
SCRIPTS = sorted((ROOT / "tests" / "tutorial" / "typed").glob("*.py"))
UNCHANGED = {
    "from lbitcls.datasets import ImageNet",
    "from lbitcls.datasets.pipelines import Compose",
    "from lbitcls.models import build_classifier",
}
"""Imports that the tutorial has, too."""


def known_types() -> set[str]:
    found = {
        name for value in vars(registry).values() if isinstance(value, registry.Registry) for name in value.names()
    }
    methods = {f"{name}{kind}" for name in METHODS for kind in ("Conv", "Linear")}
    return found | methods | set(dir(torch.optim))


def test_rows_have_two_cells() -> None:
    assert len(ROWS) > 60 and {len(row) for row in ROWS} == {2}


def test_what_stands_here_is_there() -> None:
    known = known_types()
    for code in HERE:
        if code.startswith("from lbitcls"):
            check_python(code)
        named = re.findall(r"type='(\w+)'", code)
        assert set(named) <= known, code
        if named:
            ast.parse(f"f({code.replace('…', '0')})")
        for path in re.findall(r"\b(?:configs|docs|tools|lbitcls)/[\w/.]+", code):
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_is_typed_stands_in_a_table(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    if not script.name.startswith(("qquant", "own")):  # whose types are the tutorial's
        assert not [name for name in re.findall(r'type="(\w+)"', text) if name not in PAGE]
    listed = set(re.findall(r"from lbitcls[\w.]* import [\w, ]+", SECTION)) | UNCHANGED
    names = {name for line in listed for name in re.split(r", | import ", line)[1:]} | {"get_logger"}
    imported = {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lbitcls")
        for alias in node.names
    }
    assert imported <= names | {"show_result"}
    if script.name == "qquant.py":
        lines = set(re.findall(r"^ *(from lbitcls\S* import .+)$", text, re.MULTILINE))
        assert lines - UNCHANGED <= {code for code in HERE if code.startswith("from")} | {
            "from lbitcls.utils import Config, load_checkpoint"
        }
