"""Safe unpacking of untrusted archives: only files and folders, and nothing outside the target folder.

Members are written here, under names that are checked here: before Python 3.11.13, a chain of long links could lead
tarfile's own filter outside the target. Links, devices and pipes are refused; so are names that lead outside or that no
file system accepts, archives that are truncated, encrypted or compressed by an unknown method, and those that unpack to
far more than their own size.
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
MOST_BYTES = 2**32  # limit for any archive, unless `MOST_RATIO` times its size is larger
MOST_RATIO = 100  # photos hardly compress, drawings to a fiftieth, a zip bomb to a thousandth
_LONGEST_PART, _LONGEST_NAME = 255, 2000  # bytes
_LARGEST_HEADER = 2**22  # bytes per read; file contents are read in smaller chunks
_BLOCK = 512  # tar's block size in bytes
_KNOWN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OPENERS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class ArchiveError(Exception):
    """An archive was refused or is corrupt; the message gives the reason."""


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar archive (compressed or not) or a zip archive into the empty folder `folder`.

    Raises:
        ArchiveError: The archive is truncated or refused.
        Exception: Anything else that its reader raises for a corrupt archive, or the system for the disk.
    """
    with io.BufferedReader(open_regular(archive)) as file:
        target = _Target(folder, os.fstat(file.fileno()).st_size)
        if archive.suffix == ".zip":
            _extract_zip(file, target)
        else:
            _extract_tar(file, target)


class _Target:
    """Target folder for members, with a limit on how much is written.

    Args:
        folder: Folder to write to.
        size: Size of the archive in bytes.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.limit = max(MOST_BYTES, MOST_RATIO * size)
        self.files = self.bytes = 0

    def expect(self, name: str, size: int) -> None:
        """Count a member before it is written; raise `ArchiveError` if it exceeds a limit."""
        self.files += 1
        self.bytes += max(size, 0)
        if self.files > MOST_FILES:
            raise ArchiveError(f"it contains more than {MOST_FILES:,} files and folders")
        if self.bytes > self.limit:
            raise ArchiveError(f"with {name!r:.200} it unpacks to {self.bytes:,} bytes, more than {self.limit:,}")
        free = shutil.disk_usage(self.folder).free if size > 2**20 else size
        if size > free:
            raise ArchiveError(f"{name!r:.200} has {size:,} bytes, but only {free:,} are free on the disk")

    def make_folder(self, name: str) -> None:
        """Create the folder `name` and its parents."""
        self.folder.joinpath(*checked_parts(name)).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, size: int, source: IO[bytes]) -> None:
        """Write `size` bytes of `source` to the file `name`; replace an earlier member of the same name."""
        parts = checked_parts(name)
        if not parts:
            raise ArchiveError(f"{name!r:.200} is not a file name")
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            left = size
            while left > 0 and (block := source.read(min(left, 2**18))):
                file.write(block)
                left -= len(block)
        if left:
            raise ArchiveError(f"{name!r:.200} is truncated: {left:,} of its {size:,} bytes are missing")


def checked_parts(name: str) -> list[str]:
    """Return the path components of a member's name, relative to the target folder; empty for the folder itself.

    Raises:
        ArchiveError: The name leads outside (absolute, `..` or a drive letter), or no file can have it.
    """
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or ".." in parts or re.match("[A-Za-z]:", plain):
        raise ArchiveError(f"the name {name!r:.200} leads outside the archive's folder")
    lengths = [len(os.fsencode(part)) for part in parts]
    if "\0" in name or max(lengths, default=0) > _LONGEST_PART or sum(lengths) + len(lengths) > _LONGEST_NAME:
        raise ArchiveError(f"{name!r:.200} cannot be a file name (it contains a NUL or is too long)")
    return parts


# zip


def _extract_zip(file: BinaryIO, target: _Target) -> None:
    with zipfile.ZipFile(file) as zipped:
        members = zipped.infolist()
        for member in members:  # check all before writing the first
            _check_zipped(member)
            target.expect(member.filename, member.file_size)
        for member in members:
            if member.is_dir():
                target.make_folder(member.filename)
                continue
            with zipped.open(member) as source:
                target.write(member.filename, member.file_size, source)
                source.read(1)  # to the end, where the checksum is verified


def _check_zipped(member: zipfile.ZipInfo) -> None:
    name, mode = member.filename, member.external_attr >> 16
    checked_parts(member.orig_filename)  # `filename` is cut at a NUL
    if member.flag_bits & 0x1 or member.flag_bits & 0x40:
        raise ArchiveError(f"{name!r:.200} is encrypted; unpack it yourself with its password")
    if member.compress_type not in _KNOWN:
        method = zipfile.compressor_names.get(member.compress_type, "unknown")  # type: ignore[attr-defined]
        raise ArchiveError(
            f"{name!r:.200} is compressed by method {member.compress_type} ({method}), which Python does not support"
        )
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"{name!r:.200} is neither a file nor a folder; links and devices are refused")


# tar


class _Bounded:
    """File wrapper for tarfile that limits each read: a forged header size would otherwise fill memory."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise ArchiveError(f"it is corrupt, or has a header of {size:,} bytes")
        return self._file.read(size)


def _extract_tar(file: BinaryIO, target: _Target) -> None:
    magic = file.peek(6)[:6]  # type: ignore[attr-defined]  # a BufferedReader has it
    opener = next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), None)
    plain = _Bounded(opener(file) if opener else file)
    with tarfile.open(fileobj=cast(BinaryIO, plain), mode="r:") as tar:
        while member := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # tarfile would collect all members here
            if tar.offset <= member.offset:  # a negative size: tarfile would loop forever
                raise ArchiveError(f"{member.name!r:.200} is corrupt: the next member would start before it")
            if not (member.isreg() or member.isdir()):
                raise ArchiveError(
                    f"{member.name!r:.200} is neither a file nor a folder; links and devices are refused"
                )
            target.expect(member.name, member.size)
            if member.isdir():
                target.make_folder(member.name)
                continue
            source = tar.extractfile(member)
            assert source is not None  # true for every regular file
            with source:
                target.write(member.name, member.size, source)
        _check_end(plain, tar.offset, target)


def _check_end(plain: _Bounded, offset: int, target: _Target) -> None:
    """Raise `ArchiveError` unless the archive ends properly: tarfile accepts a truncated one as complete."""
    plain.seek(offset)
    if plain.read(_BLOCK) != bytes(_BLOCK):
        raise ArchiveError("it is truncated or corrupt: the end-of-archive marker is missing")
    rest = 0
    while block := plain.read(2**18):  # to the end of the compressed data, where its checksum is verified
        rest += len(block)
        if rest > target.limit:
            raise ArchiveError("too much data follows its end")
