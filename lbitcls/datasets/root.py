"""Where data lies: one rule for every data set.

A path of a config is taken as it is when it is absolute. Otherwise it is looked for below the config's
`data_root`, the `--data-root` flag, the environment variable `LBITCLS_DATA`, `data/`, and the current folder;
the first that has it wins. A root has `flowers/train` when that folder is there, or an archive
`flowers.tar.gz` (`.tgz`, `.tar`, `.zip`) that holds it. An archive is unpacked once, into
`$XDG_CACHE_HOME/lbitcls/archives` (`~/.cache/…`), and again only when the archive has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lbitcls.datasets.archive import ARCHIVES, extract
from lbitcls.utils.cache import cache_folder, exclusive
from lbitcls.utils.errors import DataError

Roots = str | os.PathLike | Sequence[str | os.PathLike | None] | None

_logger = logging.getLogger(__name__)


def search_roots(given: Roots = None) -> list[Path]:
    """The folders below which a relative path is looked for, in order.

    Args:
        given: what comes first, one folder or several (the config's `data_root`, then the flag); None is left
            out.
    """
    first = [given] if isinstance(given, (str, os.PathLike)) or given is None else list(given)
    named = [root for root in (*first, os.environ.get("LBITCLS_DATA"), "data", ".") if root]
    return list(dict.fromkeys(Path(root).expanduser() for root in named))


def download_root(roots: Sequence[Path]) -> Path:
    """Where `download=True` puts data: the first root, made if it is not there."""
    roots[0].mkdir(parents=True, exist_ok=True)
    return roots[0]


def find_data(
    name: str | os.PathLike, roots: Sequence[Path], owner: str, hint: str = "", archive: str | None = None
) -> Path:
    """The path of `name` (file or folder) by the rule above.

    Args:
        name: an absolute path, or one to be looked for below `roots`.
        roots: from `search_roots`.
        owner: who asks, as the message says it (`"ImageFolder"`).
        hint: the end of the message about missing data (whether `download=True` fetches it).
        archive: stem of an archive that holds `name`, where it is not named after it.

    Raises:
        DataError: it is nowhere; the message lists what was looked for where.
    """
    found = locate(name, roots, archive)
    if found is None:
        raise DataError(missing(name, roots, owner, hint, archive))
    return found


def missing(
    name: str | os.PathLike, roots: Sequence[Path], owner: str, hint: str = "", archive: str | None = None
) -> str:
    """The message about data that is nowhere."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return f"{owner}: {path} does not exist, nor an archive that would hold it. {hint}".rstrip()
    stem = archive or next((part for part in path.parts if part != ".."), ".")
    archives = ", ".join(stem + suffix for suffix in ARCHIVES)
    places = ", ".join(str(root.absolute()) for root in roots)
    return (
        f"{owner}: found neither '{path}' nor an archive of it ({archives}) below {places}. Give the folder that "
        f"holds it as data_root in the config, as --data-root, or as LBITCLS_DATA. {hint}"
    ).rstrip()


def locate(name: str | os.PathLike, roots: Sequence[Path], archive: str | None = None) -> Path | None:
    """Like `find_data`, but None when it is nowhere."""
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
    """`path` below `root` where one of its folders is an archive; unpacks the archive."""
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
    """`rest` in an unpacked archive, which holds a folder of its own name, or the content directly."""
    for candidate in (unpacked_folder / name / rest, unpacked_folder / rest):
        if candidate.exists():
            return candidate
    return None


def unpacked(archive: Path) -> Path:
    """The folder with the content of `archive`, unpacked now if it is not in the cache yet.

    Safe against an interruption (the folder appears whole, by a rename) and against several processes at once
    (one unpacks, the others wait).

    Raises:
        DataError: the archive is corrupt, or holds what `lbitcls.datasets.archive` refuses, or the cache cannot be
            written.
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
    except Exception as error:  # the readers of archives raise many kinds on corrupt ones
        raise DataError(
            f"cannot unpack {archive} into {target}: {error or type(error).__name__}. Mend the archive, or unpack it "
            "beside itself; XDG_CACHE_HOME chooses another place for the cache."
        ) from error
    return target


def _unpack(archive: Path, target: Path) -> None:
    _clear(target.parent, target)
    _logger.info("unpacking %s into %s", archive, target)
    temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.tmp", dir=target.parent))
    try:
        extract(archive, temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _clear(cache: Path, held: Path) -> None:
    """Remove what killed processes left half unpacked, of the archive whose lock is held and of others."""
    for stale in cache.glob("*.tmp*"):
        owner = stale.with_name(stale.name.rpartition(".tmp")[0])
        if owner == held:
            shutil.rmtree(stale, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), exclusive(owner, wait=False) as ours:
            if ours:
                shutil.rmtree(stale, ignore_errors=True)
