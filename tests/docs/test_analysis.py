"""docs/analysis.md: its options are the command's."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from lbitcls.commands.compare import add_options as compare_arguments
from lbitcls.workflows.comparing import PAGE

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")


def test_options_are_those_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    compare_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"^\| `(--[a-z-]+)", TEXT, re.MULTILINE)) == known
    assert f"in a fixed shuffled order ({parser.get_default('num_images')})" in TEXT
    assert f"(`{PAGE}`)" in TEXT
