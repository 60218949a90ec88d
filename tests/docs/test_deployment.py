"""docs/deployment.md: its options are the command's, its picture can be drawn."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_the_options_are_those_of_the_command() -> None:
    help_text = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "export.py"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"--[a-z-]+", help_text))
    described = set(re.findall(r"^\| `(--[a-z-]+)", TEXT, re.MULTILINE))
    general = {"--help", "--out", "--verify", "--device", "--data-root", "--options", "--cfg-options"}
    assert described == known - general


@pytest.mark.slow
def test_the_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    drawn = tmp_path / "deployment.svg"
    script = ROOT / "docs" / "plot_deployment.py"
    subprocess.run([sys.executable, str(script), "--out", str(drawn)], check=True, capture_output=True)
    words = [
        re.findall(r">([^<>]+)</text>", path.read_text(encoding="utf-8"))
        for path in (drawn, script.with_name(drawn.name))
    ]
    assert {"conv1: LSQConv", "goes into the scales and the bias", "QuantizeLinear", "Clip"} <= set(words[0])
    # Which container signed inputs get is measured, and the Clip's bound may differ in its last digit.
    stable = [[word for word in said if "zero point" not in word and "…" not in word] for said in words]
    assert stable[0] == stable[1]
