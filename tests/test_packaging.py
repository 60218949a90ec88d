"""The package as others install it, and its requirements."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lbitcls.version import __version__

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
REQUIREMENTS = sorted(FOLDER.glob("*.txt"))
NO_EXTRAS = {"build", "locked", "readthedocs", "runtime", "supply"}
# What is compared with, in environments of its own; an editor; the pins themselves and what writes them; what asks for
# older versions than the tested set has, or brings much: their tests run where they are installed.
UNTESTED = {"benchmarks", "notebook", "locked", "supply", "datasets", "mlflow", "wandb"}
LARGE = {"datasets", "mlflow", "wandb"}
IMPORT_NAMES = {
    "cv2": "opencv-python",
    "mmcv": "mmcv-lite",
    "mmengine": "mmengine-lite",
    "mlflow": "mlflow-skinny",
    "PIL": "pillow",
    "tvm": "apache-tvm",
    "yaml": "pyyaml",
}
BROUGHT_BY = {
    "ipython": "jupyterlab",  # and there in any notebook
    "markupsafe": "jinja2",
    "opencv-python": "mmcv-lite",
    "pillow": "torchvision",
    "pyyaml": "mmengine-lite",
}


def read_requirements(path: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line.rstrip("\\ ")) for line in lines if line and not line.startswith("-")]


def pyproject() -> dict[str, Any]:
    """What pyproject.toml says."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    """The tested set: canonical name -> version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


def third_party_imports() -> set[str]:
    """The distributions that the package imports anywhere, by canonical name."""
    names = set()
    for path in (ROOT / "lbitcls").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return {
        canonicalize_name(IMPORT_NAMES.get(name, name)) for name in names - set(sys.stdlib_module_names) - {"lbitcls"}
    }


def test_metadata() -> None:
    meta = importlib.metadata.metadata("lbitcls")
    assert meta["Version"] == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    extras = {path.stem for path in REQUIREMENTS} - NO_EXTRAS
    assert set(meta.get_all("Provides-Extra")) == extras


def test_every_requirements_file_is_an_extra_and_optional_names_those_to_use() -> None:
    dynamic = pyproject()["tool"]["setuptools"]["dynamic"]
    extras = dynamic["optional-dependencies"]
    assert dynamic["dependencies"]["file"] == "requirements/runtime.txt"
    stems = {path.stem for path in REQUIREMENTS} - NO_EXTRAS - {"optional"}
    optional = extras.pop("optional")["file"]
    assert extras == {stem: {"file": f"requirements/{stem}.txt"} for stem in stems}
    judging = {"engines", "executorch", "qonnx"}  # make setup-engines
    to_use = stems - judging - LARGE - {"benchmarks", "docs", "notebook", "tests"}
    assert optional == [f"requirements/{stem}.txt" for stem in sorted(to_use)]
    lines = (FOLDER / "optional.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("-r")] == [f"-r {stem}.txt" for stem in sorted(to_use)]


def test_pyproject_holds_the_metadata_and_setup_py_only_the_build_step() -> None:
    project = pyproject()["project"]
    assert set(project["dynamic"]) == {"version", "dependencies", "optional-dependencies"}
    (call,) = (
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    assert [keyword.arg for keyword in call.keywords] == ["cmdclass"]
    for name, target in project["scripts"].items():
        module, _, function = target.partition(":")
        assert name == "lbitcls" and callable(getattr(importlib.import_module(module), function))
    for pattern in pyproject()["tool"]["setuptools"]["package-data"]["lbitcls"]:
        assert list((ROOT / "lbitcls").glob(pattern)), f"package-data names {pattern}, which is not there"


def test_console_script() -> None:
    script = Path(sys.executable).with_name("lbitcls")
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout and "test" in done.stdout


@pytest.mark.parametrize("path", [p for p in REQUIREMENTS if p.stem not in UNTESTED], ids=lambda path: path.stem)
def test_constraints_pin_every_requirement_inside_its_range(path: Path) -> None:
    tested = pins()
    for requirement in read_requirements(path):
        version = tested.get(canonicalize_name(requirement.name))
        assert version, f"constraints.txt pins no version of {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} does not allow the tested {version}"


def test_everything_imported_is_required() -> None:
    required = {canonicalize_name(r.name) for path in REQUIREMENTS for r in read_requirements(path)}
    required |= {name for name, source in BROUGHT_BY.items() if source in required}
    assert third_party_imports() <= required


def test_locked_pins_what_training_and_export_need_with_hashes() -> None:
    text = (FOLDER / "locked.txt").read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text, "no registry is named"
    entries = re.findall(
        r"^([\w.-]+)==(\S+)(?: ; [^\\\n]+)? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M
    )
    locked = {canonicalize_name(name): version for name, version, _ in entries}
    assert len(locked) == len(re.findall("==", re.sub(r"#.*|;.*", "", text)))
    for name in ("runtime.txt", "deploy.txt"):
        for requirement in read_requirements(FOLDER / name):
            version = locked.get(canonicalize_name(requirement.name))
            assert version and requirement.specifier.contains(version), f"{requirement}: run `make locked`"
    other = {name for name, version in locked.items() if pins().get(name, version) != version}
    assert not other, f"the tested versions of {other} are others: run `make locked`"


def copy_sources(target: Path) -> None:
    """Copy what builds need."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("lbitcls", "configs", "requirements"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md"):
        shutil.copy(ROOT / name, target)


@pytest.mark.slow
def test_archives_are_equal_wherever_they_are_built(tmp_path: Path) -> None:
    code = 'import setuptools.build_meta as b; b.build_wheel("dist"); b.build_sdist("dist")'
    found = []
    for umask, folder in ((0o022, tmp_path / "here"), (0o077, tmp_path / "further" / "away")):
        copy_sources(folder)
        for number, path in enumerate([folder, *folder.rglob("*")]):
            path.chmod(path.stat().st_mode & ~umask)
            os.utime(path, (10**9 + number + umask, 10**9 + umask))
        build = [sys.executable, "-c", code]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        done = subprocess.run(build, cwd=folder, umask=umask, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append({path.name: path.read_bytes() for path in (folder / "dist").iterdir()})
    assert len(found[0]) == 2 and found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


def test_wheel_holds_the_package_its_data_and_the_configs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    copy_sources(source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("lbitcls-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    files = {path.relative_to(source).as_posix() for path in source.glob("lbitcls/**/*") if path.is_file()}
    files |= {f"lbitcls/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.*")}
    files = {name for name in files if "__pycache__" not in name}
    assert inside == files, "a folder lacks its __init__.py, or pyproject.toml names no package-data for a file"
    assert {"lbitcls/datasets/data/digits.npz", "lbitcls/analysis/page/report.html"} <= inside
    code = "import sys; from lbitcls.utils import Config; print(Config.fromfile(sys.argv[1]).filename)"
    config = "configs/LSQ/resnet18/config4_res18_lsq_4w4f.py"
    installed = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", code, config], cwd=tmp_path, env=installed, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "installed" / "lbitcls" / config), done.stderr
