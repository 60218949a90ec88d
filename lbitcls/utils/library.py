"""The configs that come with the package, by the same name in a clone and in an installed package."""

from __future__ import annotations

from pathlib import Path

NAME = "configs"


def config_library() -> Path:
    """The folder of the shipped configs: beside the package in a clone, inside it where it was installed.

    Example:
        >>> (config_library() / "LSQ" / "resnet50").is_dir()
        True
    """
    package = Path(__file__).resolve().parent.parent
    return next((place for place in (package / NAME, package.parent / NAME) if place.is_dir()), package / NAME)


def find_shipped(path: Path) -> Path | None:
    """The shipped config that a relative path such as `configs/LSQ/resnet50/….py` names, from any folder."""
    if path.is_absolute() or path.parts[:1] != (NAME,):
        return None
    shipped = config_library().joinpath(*path.parts[1:])
    return shipped if shipped.is_file() else None
