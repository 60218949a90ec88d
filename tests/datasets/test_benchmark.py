"""benchmarks/decode.py runs, with and without real data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def _run(repo_root: Path, *args: str) -> dict:
    command = [sys.executable, str(repo_root / "benchmarks" / "decode.py"), "--rounds", "1", "--json", "out.json"]
    printed = subprocess.run([*command, *args], check=True, capture_output=True, text=True).stdout
    result = json.loads(Path("out.json").read_text())
    assert f"{result['ratio']}" in printed and result["ratio"] > 0
    return result


def test_without_data(repo_root: Path) -> None:
    result = _run(repo_root, "--images", "6")
    assert (result["images"], result["source"]) == (6, "written here")


@pytest.mark.slow
def test_at_least_as_fast_as_torchvision(repo_root: Path, shared_data: Path) -> None:
    result = _run(repo_root, "--images", "200", "--rounds", "5", "--data-root", str(shared_data))
    assert result["source"] == "imagenet1000_256" and result["ratio"] > 1
