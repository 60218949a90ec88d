"""The version of the package, as the file `VERSION` has it; `pyproject.toml` reads that file without importing anything."""

from pathlib import Path

__version__ = Path(__file__).with_name("VERSION").read_text(encoding="utf-8").strip()
