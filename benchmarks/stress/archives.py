"""Archives of data: hostile names, links, devices, bombs, damage; and idx files, plain or gzipped."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from lbitcls.datasets import archive
from lbitcls.datasets.mnist import read_idx
from lbitcls.datasets.root import unpacked
from stress.damage import damaged
from stress.names import odd_name
from stress.verdicts import Kind

MOST_BYTES = 2**23
"""Limit of an unpacked archive in these runs, below the package's own of 4 GiB, which would fill disks."""
_TAR_KINDS = (
    *(tarfile.REGTYPE,) * 12,
    *(tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
    *(tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"Z"),
)
_ZIP_MODES = (0, 0, 0, 0, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFIFO, stat.S_IFCHR, stat.S_ISUID | 0o777)
_ZEROS = (100, 1000, 10**5, 10**5, 10**5, MOST_BYTES + 1)  # bytes; the last are a bomb
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OPENERS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": lambda content: content,
    ".tar.gz": gzip.compress,
    ".tgz": bz2.compress,  # told apart by its content, not by its name
    ".tar.xz": lzma.compress,
}


def _tar(names: list[str], draw: random.Random) -> bytes:
    buffer = io.BytesIO()
    form = draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = draw.choice(_TAR_KINDS), draw.choice(("../../secrets/precious", "/etc", "x"))
            content = _content(draw) if member.isreg() else b""
            member.size = len(content) if draw.random() < 0.95 else draw.choice((0, 1, 2**33, 2**62))
            member.mode = draw.choice((0o644, 0o000, 0o4777))
            tar.fileobj.write(member.tobuf(form, "utf-8", "surrogateescape"))  # type: ignore[union-attr]
            tar.fileobj.write(content + bytes(-len(content) % 512))  # type: ignore[union-attr]
            tar.offset = buffer.tell()  # type: ignore[attr-defined]
    return buffer.getvalue()


def _zip(names: list[str], draw: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name in names:
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name
            info.external_attr, info.compress_type = draw.choice(_ZIP_MODES) << 16, draw.choice(_METHODS)
            zipped.writestr(info, _content(draw))
    return buffer.getvalue()


def _content(draw: random.Random) -> bytes:
    return draw.choice((b"", b"x", draw.randbytes(draw.randint(1, 2000)), bytes(draw.choice(_ZEROS))))


def _idx(draw: random.Random) -> bytes:
    shape = [draw.choice((0, 1, 2, 28, -1, -28, 2**16, 2**31 - 1, -(2**31))) for _ in range(draw.randint(0, 5))]
    size = abs(_product(shape))
    body = bytes(size if size < 10**5 else 100)
    return bytes((0, 0, draw.choice((8, 8, 8, 9)), len(shape))) + struct.pack(f">{len(shape)}i", *shape) + body


def _product(values: list[int]) -> int:
    product = 1
    for value in values:
        product *= value
    return product


class Archives(Kind):
    """An archive per case."""

    name = "archives"
    count = 2_000
    most_mib = 128

    def prepare(self, folder: Path) -> None:
        archive.MOST_BYTES = MOST_BYTES
        self.bomb = gzip.compress(bytes((0, 0, 8, 1)) + struct.pack(">i", 2**29) + bytes(2**29), 1)
        draw = random.Random(0)
        names = [f"data/{number}.png" for number in range(4)]
        draw.choice = lambda options: options[0] if b"" not in options else b"x" * 700  # type: ignore[method-assign,assignment]
        self.wholes = [_tar(names, draw), _zip(names, draw)]

    def draw(self, number: int, folder: Path) -> str:
        draw = random.Random(f"archive {number}")
        if draw.random() < 0.15:
            content = _idx(draw)
            zipped, is_bomb = draw.random() < 0.5, draw.random() < 0.2
            path = folder / ("x-idx3-ubyte.gz" if zipped or is_bomb else "x-idx3-ubyte")
            path.write_bytes(self.bomb if is_bomb else gzip.compress(content) if zipped else content)
            return f"idx {content[:24]!r}"
        suffix = draw.choice((*_OPENERS, ".zip", ".zip"))
        if draw.random() < 0.4:
            said, content = damaged(self.wholes[suffix == ".zip"], draw, self.wholes)
        else:
            names = [odd_name(draw).encode("utf-8", "replace").decode() for _ in range(draw.randint(0, 5))]
            said = ascii(names)
            content = _zip(names, draw) if suffix == ".zip" else _tar(names, draw)
        if suffix != ".zip":
            content = _OPENERS[suffix](content)
        if draw.random() < 0.2:
            more, content = damaged(content, draw, self.wholes)
            said += f" {more}"
        (folder / f"x{suffix}").write_bytes(content)
        return f"{suffix} {said}"

    def read(self, number: int, folder: Path) -> object:
        (path,) = folder.iterdir()
        if "idx" in path.name:
            return read_idx(path)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        return unpacked(path)
