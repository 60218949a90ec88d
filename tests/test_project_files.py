"""What a public project brings beside its code: workflows, templates, citation, Dockerfile. None of them runs here."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lbitcls.version import __version__

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def read_yaml(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def targets() -> set[str]:
    return set(re.findall(r"^\.PHONY: (\S+)", MAKEFILE, re.MULTILINE))


def jobs(path: Path) -> list[dict[str, Any]]:
    return list(read_yaml(path)["jobs"].values())


def rows(job: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of a job's matrix; one without values where it has none."""
    found: list[dict[str, str]] = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
    return found


def commands(job: dict[str, Any]) -> list[str]:
    """What a job runs, in each row of its matrix."""
    return [filled(step["run"], row) for row in rows(job) for step in job["steps"] if "run" in step]


def filled(run: str, row: dict[str, str]) -> str:
    """A command with the values of a row of the matrix."""
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found: row[found[1]], run)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_only_call_targets_of_the_makefile(path: Path) -> None:
    for job in jobs(path):
        assert commands(job), "the job runs nothing"
        for command in commands(job):
            make, target, *variables = shlex.split(command)
            assert make == "make" and target in targets(), command
            assert all(re.search(rf"^{name.partition('=')[0]} \?= ", MAKEFILE, re.MULTILINE) for name in variables)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_few_rights_and_an_end(path: Path) -> None:
    assert read_yaml(path)["permissions"] == {"contents": "read"}
    for job in jobs(path):
        assert job["timeout-minutes"] <= 120
        assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


def test_every_kind_of_check_has_a_job() -> None:
    called = {shlex.split(command)[1] for path in WORKFLOWS for job in jobs(path) for command in commands(job)}
    assert {"audit", "lint", "types", "pytest", "docs", "wheel", "release"} <= called
    assert read_yaml(ROOT / ".github" / "workflows" / "release.yml")[True] == {"push": {"tags": ["v*"]}}  # YAML's "on"


def torch_range() -> SpecifierSet:
    lines = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8").splitlines()
    (found,) = (Requirement(line).specifier for line in lines if re.match(r"torch[<>=]", line))
    return found


def test_tests_run_on_the_oldest_and_the_newest_versions() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    (job,) = jobs(ROOT / ".github" / "workflows" / "tests.yml")
    constraints = {row["constraints"]: row["python"] for row in rows(job)}
    assert all((ROOT / name).is_file() for name in constraints)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={constraints['constraints-oldest.txt']}"
    (lower,) = (bound.version for bound in torch_range() if bound.operator == ">=")
    (upper,) = (bound.version for bound in torch_range() if bound.operator == "<")
    assert f"torch=={lower}.*" in (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    newest = re.search(r"^torch==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and f"{newest[1]}.{int(newest[2]) + 1}" == upper


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_what_github_asks_for(path: Path) -> None:
    form = read_yaml(path)
    assert form["name"] and form["description"]
    assert all(field["type"] in {"textarea", "input", "dropdown"} for field in form["body"])
    assert all(field["attributes"]["label"] for field in form["body"])
    names = [field["id"] for field in form["body"]]
    assert len(names) == len(set(names))


def test_citation_is_of_this_version() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == __version__ and citation["license"] == "Apache-2.0"


def copied() -> list[str]:
    """What the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?:--\S+ )*(.*) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_what_the_dockerfile_copies_is_there_and_suffices(tmp_path: Path) -> None:
    assert not set(copied()) & set((ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines())
    for name in copied():
        assert (ROOT / name).exists(), name
        (tmp_path / name).symlink_to(ROOT / name)
    assert {"LICENSE", "README.md", "configs", "lbitcls", "setup.py", "tools"} <= set(copied())  # what builds and runs
    targets_run = re.findall(r"^(?:RUN|CMD) .*\bmake\W+([a-z-]+)\W*$", DOCKERFILE, re.MULTILINE)
    assert targets_run == ["install", "quickstart"]
    for target in targets_run:
        done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (config,) = re.findall(r"tools/train\.py (configs/\S+)", done.stdout)
    assert (tmp_path / config).is_file()


def test_the_dockerfile_takes_its_base_as_an_argument_and_runs_without_root() -> None:
    assert re.search(r"^ARG BASE=\S+\n(?:#.*\n)*FROM \$\{BASE\}$", DOCKERFILE, re.MULTILINE)
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users and users[-1] not in {"root", "0"}
