"""Formulas of the pages: every one becomes MathML, with a row for each of its lines."""

from __future__ import annotations

import re

import pytest
from blocks import ROOT
from math_core import LatexError
from mathml import CONVERTER

FORMULAS = {
    f"{path.stem}-{number}": formula
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for number, formula in enumerate(re.findall(r"^```math\n(.*?)^```$", path.read_text("utf-8"), re.M | re.DOTALL))
}


def test_there_are_formulas() -> None:
    assert len(FORMULAS) >= 10


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_has_a_row_for_each_line(name: str) -> None:
    formula = FORMULAS[name]
    made = CONVERTER.convert_with_local_state(formula, displaystyle=True)
    assert made.startswith('<math display="block">')
    assert made.count("<mtr>") == formula.count("\\\\") + formula.count("\\begin{")
    assert "\\" not in made and "merror" not in made


def test_an_unknown_command_is_an_error() -> None:
    with pytest.raises(LatexError):
        CONVERTER.convert_with_local_state(r"\quantise{x}", displaystyle=True)
