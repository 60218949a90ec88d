"""Version of the package, from the file `VERSION`, which `pyproject.toml` reads without importing anything."""

from pathlib import Path

__version__ = Path(__file__).with_name("VERSION").read_text(encoding="utf-8").strip()
