"""Metadata of the package; the versions are ranges, constraints.txt pins the tested set."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def requirements(path: Path) -> list[str]:
    """The requirements in a file, and in those that it names by `-r`."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        found += requirements(path.parent / line[2:].strip()) if line.startswith("-r") else [line] if line else []
    return found


class BuildWithConfigs(build_py):
    """Puts `configs/` into the built package, where `lbitcls.utils.library` finds it; a clone has it beside."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "lbitcls", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))


folder = ROOT / "requirements"
extras = [path for path in sorted(folder.glob("*.txt")) if path.stem not in ("runtime", "build", "readthedocs")]

setup(
    name="lbitcls",
    version=(ROOT / "lbitcls" / "VERSION").read_text(encoding="utf-8").strip(),
    description="Train image classifiers with 2- to 8-bit weights and activations from one config file",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["lbitcls", "lbitcls.*"]),
    package_data={"lbitcls": ["VERSION", "py.typed", "datasets/data/*", "analysis/page/*"]},
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=requirements(folder / "runtime.txt"),
    # The other requirements files are the extras of their names: `pip install lbitcls[mmcv]`.
    extras_require={path.stem: requirements(path) for path in extras},
    entry_points={"console_scripts": ["lbitcls = lbitcls.commands.main:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
