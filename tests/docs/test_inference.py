"""docs/inference.md and the README's photo: the options are the command's, the photo takes four lines."""

from __future__ import annotations

import re
import subprocess
import sys

from blocks import ROOT
from pages import blocks_of

TEXT = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")


def test_the_options_are_those_of_the_command() -> None:
    command = [sys.executable, str(ROOT / "tools" / "infer.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"--[a-z-]+", text)) - {"--help"}
    described = "".join(line for line in TEXT.splitlines() if line.startswith("| `--"))
    assert set(re.findall(r"`(--[a-z-]+)", described)) == known


def test_a_labelled_photo_takes_four_lines() -> None:
    (code,) = (block.code for block in blocks_of("README.md") if "show_result_pyplot" in block.code)
    assert len([line for line in code.splitlines() if line]) == 4
