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
    for name in (
        "Makefile",
        "pyproject.toml",
        "setup.py",
        "constraints.txt",
        "constraints-oldest.txt",
        "requirements",
        "lbitcls/VERSION",
    ):
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


def test_release_is_of_the_tag_of_the_version(project: Path) -> None:
    (project / "CHANGELOG.md").write_text(
        "# Changelog\n\n## 9.9.9\n\n- next\n\n## 0.0.7\n\n- this\n\n## 0.0.6\n\n- old\n"
    )
    (project / "lbitcls" / "VERSION").write_text("0.0.7\n", encoding="utf-8")
    gh = project / "gh"
    gh.write_text('#!/bin/sh\necho "$@" > gh.log; cat >> gh.log\n', encoding="utf-8")
    gh.chmod(0o755)
    given = {"PYTHON": str(project / "python"), "PATH": f"{project}{os.pathsep}{os.environ['PATH']}"}
    for tag in ("v0.0.6", ""):
        done = make(project, "release", TAG=tag, **given)
        assert done.returncode != 0 and f"version 0.0.7 is v0.0.7; got TAG='{tag}'" in done.stderr
    assert not (project / "gh.log").exists()
    done = make(project, "release", TAG="v0.0.7", **given)
    assert done.returncode == 0, done.stderr
    call, *notes = (project / "gh.log").read_text(encoding="utf-8").splitlines()
    assert call.startswith("release create v0.0.7 dist/*.whl")
    assert [line for line in notes if line] == ["## 0.0.7", "- this"]


def test_other_constraints_are_installed_and_may_have_an_older_python(project: Path) -> None:
    other = "CONSTRAINTS=constraints-oldest.txt"
    assert make(project, "setup", f"PYTHON={project / 'python'}", other).returncode == 0
    assert set(re.findall(r"-c (\S+)", (project / "pip.log").read_text(encoding="utf-8"))) == {"constraints-oldest.txt"}
    shutil.rmtree(project / ".venv")
    done = make(project, "setup", f"PYTHON={project / 'python'}", other, TOO_OLD="1")
    assert done.returncode != 0 and "make PYTHON=python3.10 setup" in done.stderr
    assert "sys.version_info < (3, 10)" in make(project, "-n", "setup", other).stdout
