"""The harness of the pages' code blocks is imported from this folder, Sphinx's extensions and scripts from theirs."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "docs"), str(HERE.parents[1] / "docs" / "_ext")]
