"""benchmarks/inference.py runs, and the first answer comes before PyTorch's could."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_inference_costs_little(repo_root: Path, tmp_path: Path) -> None:
    script, out = repo_root / "benchmarks" / "inference.py", tmp_path / "out.json"
    command = [sys.executable, str(script), "--rounds", "5", "--json", str(out)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(out.read_text())
    assert [(row["file"], row["batch"]) for row in result["rows"]] == [
        (file, batch) for file in ("float", "W8A8") for batch in (1, 16)
    ]
    assert "first answer" in printed and result["first"]["first"]["cpu"] < result["first"]["torch"]["cpu"]
    assert all(row["ratio"] > 0 for row in result["rows"])
