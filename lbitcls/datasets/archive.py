"""Archives from anywhere, unpacked with nothing outside of one folder, and nothing in it but files and folders.

The members are written here, under names that are checked here: tarfile's own filter can be led outside by a chain of
long links in Python before 3.11.13. Refused are links, devices and pipes; names that lead outside, or that no file
system takes; archives that are cut off, encrypted or compressed in an unknown way; and those that would become much
more than they are.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from lbitcls.utils.files import open_regular

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")

MOST_FILES = 10_000_000
MOST_BYTES = 2**32  # that any archive may become; a larger one `MOST_RATIO` times its size
MOST_RATIO = 100  # photos hardly shrink, drawings to a fiftieth, a bomb to a thousandth
_LONGEST_PART, _LONGEST_NAME = 255, 2000  # bytes
_LARGEST_HEADER = 2**22  # bytes that are read at once; a file's are read in smaller parts
_BLOCK = 512  # of tar
_KNOWN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OPENERS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class ArchiveError(Exception):
    """An archive that is not unpacked: why."""


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, compressed or not, or a zip archive into `folder`, which is empty.

    Raises:
        ArchiveError: the archive is cut off, or is refused.
        Exception: whatever else its reader says of a corrupt one, or the system of the disk.
    """
    with io.BufferedReader(open_regular(archive)) as file:
        target = _Target(folder, os.fstat(file.fileno()).st_size)
        if archive.suffix == ".zip":
            _extract_zip(file, target)
        else:
            _extract_tar(file, target)


class _Target:
    """The folder that members are written to, and how much it may get.

    Args:
        folder: where they go.
        size: of the archive, in bytes.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.limit = max(MOST_BYTES, MOST_RATIO * size)
        self.files = self.bytes = 0

    def expect(self, name: str, size: int) -> None:
        """Count a member, before anything of it is written; `ArchiveError` where it is one too many."""
        self.files += 1
        self.bytes += max(size, 0)
        if self.files > MOST_FILES:
            raise ArchiveError(f"it holds more than {MOST_FILES:,} files and folders")
        if self.bytes > self.limit:
            raise ArchiveError(f"with {name!r:.200} it becomes {self.bytes:,} bytes, more than {self.limit:,}")
        free = shutil.disk_usage(self.folder).free if size > 2**20 else size
        if size > free:
            raise ArchiveError(f"{name!r:.200} has {size:,} bytes, but only {free:,} are free on the disk")

    def make_folder(self, name: str) -> None:
        """Make the folder `name` and those that it lies in."""
        self.folder.joinpath(*checked_parts(name)).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, size: int, source: IO[bytes]) -> None:
        """Write `size` bytes of `source` as the file `name`; a member of the same name before it is replaced."""
        parts = checked_parts(name)
        if not parts:
            raise ArchiveError(f"the name {name!r:.200} is none of a file")
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            left = size
            while left > 0 and (block := source.read(min(left, 2**18))):
                file.write(block)
                left -= len(block)
        if left:
            raise ArchiveError(f"{name!r:.200} is cut off: {left:,} of its {size:,} bytes are missing")


def checked_parts(name: str) -> list[str]:
    """The folders and the file of a member's name, below the folder that it is unpacked to; none for that one itself.

    Raises:
        ArchiveError: the name leads outside (it is absolute, has `..` or a drive's letter), or no file can have it.
    """
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or ".." in parts or re.match("[A-Za-z]:", plain):
        raise ArchiveError(f"the name {name!r:.200} leads outside of the archive's folder")
    lengths = [len(os.fsencode(part)) for part in parts]
    if "\0" in name or max(lengths, default=0) > _LONGEST_PART or sum(lengths) + len(lengths) > _LONGEST_NAME:
        raise ArchiveError(f"the name {name!r:.200} is none that a file can have (a NUL, or too long)")
    return parts


# zip


def _extract_zip(file: BinaryIO, target: _Target) -> None:
    with zipfile.ZipFile(file) as zipped:
        members = zipped.infolist()
        for member in members:  # all of them before the first is written
            _check_zipped(member)
            target.expect(member.filename, member.file_size)
        for member in members:
            if member.is_dir():
                target.make_folder(member.filename)
                continue
            with zipped.open(member) as source:
                target.write(member.filename, member.file_size, source)
                source.read(1)  # to the end, where the checksum is compared


def _check_zipped(member: zipfile.ZipInfo) -> None:
    name, mode = member.filename, member.external_attr >> 16
    checked_parts(member.orig_filename)  # `filename` ends at a NUL
    if member.flag_bits & 0x1 or member.flag_bits & 0x40:
        raise ArchiveError(f"{name!r:.200} is encrypted; unpack it with its password")
    if member.compress_type not in _KNOWN:
        method = zipfile.compressor_names.get(member.compress_type, "unknown")  # type: ignore[attr-defined]
        raise ArchiveError(
            f"{name!r:.200} is compressed by method {member.compress_type} ({method}), which Python does not know"
        )
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"{name!r:.200} is neither a file nor a folder; links and devices are refused")


# tar


class _Bounded:
    """What tarfile reads from: a header that is said to be huge would be read into memory at once."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise ArchiveError(f"it is corrupt, or has a header of {size:,} bytes")
        return self._file.read(size)


def _extract_tar(file: BinaryIO, target: _Target) -> None:
    magic = file.peek(6)[:6]  # type: ignore[attr-defined]  # of BufferedReader
    opener = next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), None)
    plain = _Bounded(opener(file) if opener else file)
    with tarfile.open(fileobj=cast(BinaryIO, plain), mode="r:") as tar:
        while member := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # which tarfile would collect
            if tar.offset <= member.offset:  # of a size below 0: it would come for ever
                raise ArchiveError(f"{member.name!r:.200} is corrupt: the member after it would begin before it")
            if not (member.isreg() or member.isdir()):
                raise ArchiveError(
                    f"{member.name!r:.200} is neither a file nor a folder; links and devices are refused"
                )
            target.expect(member.name, member.size)
            if member.isdir():
                target.make_folder(member.name)
                continue
            source = tar.extractfile(member)
            assert source is not None  # as for every regular file
            with source:
                target.write(member.name, member.size, source)
        _check_end(plain, tar.offset, target)


def _check_end(plain: _Bounded, offset: int, target: _Target) -> None:
    """Raise `ArchiveError` unless the archive ends as one does: tarfile takes one that is cut off for one that ends."""
    plain.seek(offset)
    if plain.read(_BLOCK) != bytes(_BLOCK):
        raise ArchiveError("it is cut off, or corrupt: the mark at the end of an archive is missing")
    rest = 0
    while block := plain.read(2**18):  # to the end of what is compressed, where its checksum is compared
        rest += len(block)
        if rest > target.limit:
            raise ArchiveError("there is too much after its end")
