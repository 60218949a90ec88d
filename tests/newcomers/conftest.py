"""The scripts run against the copy of the installed package that the documentation's harness makes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))
