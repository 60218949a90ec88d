"""The Makefile's set-up: what it lists, what it says on a bare machine, when it installs. No network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Stands for python3: "creates" a virtual environment by copying itself there, and logs what pip is asked for.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit ${TOO_OLD:-0} ;;
  *ensurepip*) exit ${NO_VENV:-0} ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"pip"*--version*) exit 0 ;;
  *"pip"*install*) echo "$*" >> pip.log; exit ${PIP_FAILS:-0} ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**clean, **environment}, capture_output=True, text=True
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that set-up reads, and a `python3` that installs nothing."""
    for name in ("Makefile", "setup.py", "constraints.txt", "requirements", "lbitcls/VERSION"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON, encoding="utf-8")
    python.chmod(0o755)
    return tmp_path


def set_up(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return make(project, "setup", f"PYTHON={project / 'python'}", **environment)


def installs(project: Path) -> int:
    log = project / "pip.log"
    return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


def test_help_is_the_default_and_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    done = make(ROOT)
    assert done.returncode == 0
    listed = re.findall(r"^  make (\S+) +\S", done.stdout, flags=re.MULTILINE)
    assert listed == re.findall(r"^\.PHONY: (\S+)", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("environment", "advice"),
    [({"NO_VENV": "1"}, "apt-get install python3-venv"), ({"TOO_OLD": "1"}, "make PYTHON=python3.11 setup")],
)
def test_bare_machine_is_told_what_it_lacks(project: Path, environment: dict[str, str], advice: str) -> None:
    done = set_up(project, **environment)
    assert done.returncode != 0
    assert advice in done.stderr
    assert not (project / ".venv").exists()


def test_missing_python_is_named(project: Path) -> None:
    done = make(project, "setup", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no-such-python is not here" in done.stderr


def test_set_up_runs_once_and_again_when_requirements_change(project: Path) -> None:
    assert set_up(project).returncode == 0
    first = installs(project)
    assert first > 0
    assert set_up(project).returncode == 0
    assert installs(project) == first
    later = (project / ".venv" / ".stamp-tests").stat().st_mtime + 10
    os.utime(project / "requirements" / "tests.txt", (later, later))
    assert set_up(project).returncode == 0
    assert installs(project) == 2 * first


def test_failed_set_up_is_taken_up_again(project: Path) -> None:
    assert set_up(project, PIP_FAILS="1").returncode != 0
    assert {path.name for path in (project / ".venv").glob(".stamp-*")} == {".stamp-venv"}
    assert set_up(project).returncode == 0
    assert {path.name for path in (project / ".venv").glob(".stamp-*")} == {
        ".stamp-venv",
        ".stamp-runtime",
        ".stamp-deploy",
        ".stamp-tests",
    }
