"""Search for data: one rule for every data set.

An absolute path in a config is used unchanged. A relative one is searched for in the config's `data_root`, the
`--data-root` flag, the environment variable `LBITCLS_DATA`, `data/`, and the current folder; the first match wins. A
root contains `flowers/train` if that folder exists, or an archive `flowers.tar.gz` (`.tgz`, `.tar`, `.zip`) that
contains it. An archive is unpacked once, into `$XDG_CACHE_HOME/lbitcls/archives` (`~/.cache/…`), and again only after
it has changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from lbitcls.datasets.archive import ARCHIVES, extract
from lbitcls.utils.cache import cache_folder, exclusive
from lbitcls.utils.errors import DataError
from lbitcls.utils.temporary import new_temporary_folder, remove_leftovers

Roots = str | os.PathLike | Sequence[str | os.PathLike | None] | None

_logger = logging.getLogger(__name__)


def search_roots(given: Roots = None) -> list[Path]:
    """Return the folders in which a relative path is searched for, in order.

    Args:
        given: One or several folders to search first (the config's `data_root`, then the flag); None is ignored.
    """
    first = [given] if isinstance(given, (str, os.PathLike)) or given is None else list(given)
    named = [root for root in (*first, os.environ.get("LBITCLS_DATA"), "data", ".") if root]
    return list(dict.fromkeys(Path(root).expanduser() for root in named))


def download_root(roots: Sequence[Path]) -> Path:
    """Return the folder into which `download=True` puts data: the first root, created if necessary."""
    roots[0].mkdir(parents=True, exist_ok=True)
    return roots[0]


def find_data(
    name: str | os.PathLike, roots: Sequence[Path], owner: str, hint: str = "", archive: str | None = None
) -> Path:
    """Return the path of `name` (file or folder) by the rule above.

    Args:
        name: Absolute path, or one to search for in `roots`.
        roots: Folders from `search_roots`.
        owner: Name of the data set for the message (`"ImageFolder"`).
        hint: End of the message about missing data (for example, that `download=True` downloads it).
        archive: Stem of an archive that contains `name`, if it has another name.

    Raises:
        DataError: `name` was not found; the message lists what was searched for and where.
    """
    found = locate(name, roots, archive)
    if found is None:
        raise DataError(missing(name, roots, owner, hint, archive))
    return found


def missing(
    name: str | os.PathLike, roots: Sequence[Path], owner: str, hint: str = "", archive: str | None = None
) -> str:
    """Return the message about missing data."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return f"{owner}: {path} does not exist, and no archive that would contain it. {hint}".rstrip()
    stem = archive or next((part for part in path.parts if part != ".."), ".")
    archives = ", ".join(stem + suffix for suffix in ARCHIVES)
    places = ", ".join(str(root.absolute()) for root in roots)
    return (
        f"{owner}: found neither '{path}' nor an archive of it ({archives}) in {places}. Set the folder that "
        f"contains it: data_root in the config, --data-root, or LBITCLS_DATA. {hint}"
    ).rstrip()


def locate(name: str | os.PathLike, roots: Sequence[Path], archive: str | None = None) -> Path | None:
    """Do as `find_data`, but return None if `name` is not found."""
    path = Path(name).expanduser()
    if path.is_absolute():
        roots, path = [Path(path.anchor)], path.relative_to(path.anchor)
    for root in roots:
        if (root / path).exists():
            return root / path
        found = _inside_archive(root, path, archive)
        if found is not None:
            return found
    return None


def _inside_archive(root: Path, path: Path, alias: str | None) -> Path | None:
    """Return `path` below `root` if one of its folders is an archive, which is unpacked; else None."""
    for depth in range(1, len(path.parts) + 1):
        folder = Path(*path.parts[:depth])
        stems = [folder.name] if alias is None or depth < len(path.parts) else [folder.name, alias]
        for stem in stems:
            for suffix in ARCHIVES:
                archive = root / folder.parent / (stem + suffix)
                if archive.is_file():
                    return _below(unpacked(archive), folder.name, Path(*path.parts[depth:]))
    return None


def _below(unpacked_folder: Path, name: str, rest: Path) -> Path | None:
    """Return `rest` in an unpacked archive, which contains a folder of its own name or the content directly."""
    for candidate in (unpacked_folder / name / rest, unpacked_folder / rest):
        if candidate.exists():
            return candidate
    return None


def unpacked(archive: Path) -> Path:
    """Return the folder with the content of `archive`, which is unpacked unless it is in the cache.

    Safe against interruption (the folder appears complete, by a rename) and against concurrent processes (one
    unpacks, the others wait).

    Raises:
        DataError: The archive is corrupt or refused by `lbitcls.datasets.archive`, or the cache is not writable.
    """
    stat = archive.stat()
    identity = f"{archive.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    stem = archive.name.partition(".")[0]
    target = cache_folder("archives") / f"{stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    try:
        with exclusive(target):
            if not target.is_dir():
                _unpack(archive, target)
    except Exception as error:  # archive readers raise many kinds of error on corrupt files
        raise DataError(
            f"cannot unpack {archive} into {target}: {error or type(error).__name__}. Repair the archive, or unpack it "
            "next to itself; XDG_CACHE_HOME selects another folder for the cache."
        ) from error
    return target


def _unpack(archive: Path, target: Path) -> None:
    remove_leftovers(target.parent)
    _logger.info("Unpacking %s into %s", archive, target)
    with new_temporary_folder(target.parent) as temporary:
        extract(archive, temporary)
        temporary.rename(target)
