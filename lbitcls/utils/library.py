"""Configs that come with the package, by the same name in a clone and in an installed package."""

from __future__ import annotations

from pathlib import Path

from lbitcls.utils.errors import nearest

NAME = "configs"
CONFIG_SUFFIXES = (".py", ".yaml", ".yml", ".json")
"""Suffixes of config files."""


def config_library() -> Path:
    """Return the folder of the package's configs: next to the package in a clone, inside it if installed.

    Example:
        >>> (config_library() / "LSQ" / "resnet50").is_dir()
        True
    """
    package = Path(__file__).resolve().parent.parent
    return next((place for place in (package / NAME, package.parent / NAME) if place.is_dir()), package / NAME)


def nearest_config(path: Path) -> str | None:
    """Return the library config closest to the missing `path`: one of the same name, else of the closest name."""
    library = config_library()
    known = [file.relative_to(library) for file in library.rglob("*.py") if "_base_" not in file.parts]
    name = nearest(path.name, [file.name for file in known], cutoff=0.75)
    if name is None:
        return None
    found = [str(file) for file in known if file.name == name]
    return str(Path(NAME, nearest(str(path), found, cutoff=0) or found[0]))


def find_shipped(path: Path) -> Path | None:
    """Return the library config that a relative path such as `configs/LSQ/resnet50/….py` names, from any folder."""
    if path.is_absolute() or path.parts[:1] != (NAME,):
        return None
    shipped = config_library().joinpath(*path.parts[1:])
    return shipped if shipped.is_file() else None
