"""Metadata of the package; the versions are ranges, constraints.txt pins the tested set."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def requirements(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def version() -> str:
    names: dict[str, str] = {}
    exec((ROOT / "lbitcls" / "version.py").read_text(encoding="utf-8"), names)
    return names["__version__"]


class BuildWithConfigs(build_py):
    """Puts `configs/` into the built package, where `lbitcls.utils.library` finds it; a clone has it beside."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "lbitcls", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))


runtime = ROOT / "requirements" / "runtime.txt"

setup(
    name="lbitcls",
    version=version(),
    description="Train image classifiers with 2- to 8-bit weights and activations from one config file",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["lbitcls", "lbitcls.*"]),
    package_data={"lbitcls": ["py.typed", "datasets/data/*", "analysis/page/*"]},
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=requirements(runtime),
    # Every other requirements file is the extra of its name: `pip install lbitcls[mmcv]`.
    extras_require={path.stem: requirements(path) for path in sorted(runtime.parent.glob("*.txt")) if path != runtime},
    entry_points={"console_scripts": ["lbitcls = lbitcls.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
