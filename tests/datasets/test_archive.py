"""Hostile and broken archives: nothing is written outside the cache, and each has a message."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbitcls.datasets import archive as module
from lbitcls.datasets.archive import ArchiveError, checked_parts
from lbitcls.datasets.root import unpacked
from lbitcls.utils.cache import cache_folder, exclusive
from lbitcls.utils.errors import DataError
from lbitcls.utils.temporary import new_temporary_folder, temporary_name

Member = tuple[str, bytes | str]  # name, and content of a file or target of a link

OUTSIDE = ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "//out.txt", "C:/out.txt", "c:out.txt", "..\\out.txt", ".."]
IMPOSSIBLE = ["x" * 300, "/".join(["y" * 100] * 25), "é" * 200]


def _tar(path: Path, members: list[tarfile.TarInfo], content: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def _zip(path: Path, name: str, mode: int = 0, content: bytes = b"x") -> Path:
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(info, content)
    return path


def _refused(path: Path, message: str) -> None:
    around = {p for p in path.parent.rglob("*") if not p.name.endswith(".lock")}
    with pytest.raises(DataError, match=f"(?s)cannot unpack .*{message}.*Repair the archive"):
        unpacked(path)
    assert {p for p in path.parent.rglob("*") if not p.name.endswith(".lock")} == around
    assert not [p for p in cache_folder("archives").iterdir() if not p.name.endswith(".lock")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache_folder("archives").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize(
    ("name", "message"),
    [*((name, "leads outside") for name in OUTSIDE), *((name, "cannot be a file name") for name in IMPOSSIBLE)],
)
def test_names_that_are_refused(name: str, message: str, suffix: str, folder: Path) -> None:
    path = folder / f"evil{suffix}"
    _zip(path, name) if suffix == ".zip" else _tar(path, [_member("good.txt"), _member(name)])
    _refused(path, message)


def test_a_name_with_a_nul() -> None:
    for name in ("a\0b", "\0"):
        with pytest.raises(ArchiveError, match="cannot be a file name"):
            checked_parts(name)
    assert checked_parts("./a//b\\c/") == ["a", "b", "c"] and checked_parts("./") == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_links_and_devices_in_tar(kind: bytes, suffix: str, folder: Path) -> None:
    _refused(_tar(folder / f"a{suffix}", [_member("a", kind, "../../out")]), "neither a file nor a folder")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_in_zip(kind: int, folder: Path) -> None:
    _refused(_zip(folder / "a.zip", "a", kind | 0o777, b"/tmp"), "neither a file nor a folder")


def test_a_chain_of_long_links(folder: Path) -> None:
    """The bypass of tarfile's own filter: a path too long for `realpath`, which then stops following its links."""
    long, members, at = "d" * 247, [], ""
    for step in "abcdefghijklmnop":
        members += [_member(at + long, tarfile.DIRTYPE), _member(at + step, tarfile.SYMTYPE, long)]
        at += long + "/"
    members.append(_member("a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/escape", tarfile.SYMTYPE, "../" * 16))
    members.append(_member("escape/out.txt"))
    _refused(_tar(folder / "chain.tar", members), "neither a file nor a folder")


def _whole(folder: Path, suffix: str) -> Path:
    path = folder / f"whole{suffix}"
    content = os.urandom(3000)
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for number in range(3):
                zipped.writestr(f"whole/{number}.txt", content)
    else:
        _tar(path, [_member("whole", tarfile.DIRTYPE), *(_member(f"whole/{n}.txt") for n in range(3))], content)
    return path


def _cuts(path: Path) -> Iterator[int]:
    """Return lengths at which to truncate an archive: everywhere, and in a plain one also between two members."""
    size = len(path.read_bytes())
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            ends = [member.offset for member in tar.getmembers()]
            size = tar.offset  # only zeros follow
        yield from (*ends, size)
    yield from range(0, size, max(1, size // 25))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_cut_archives_are_refused(suffix: str, folder: Path) -> None:
    path = _whole(folder, suffix)
    whole = path.read_bytes()
    assert len(list(unpacked(path).rglob("*.txt"))) == 3
    for entry in cache_folder("archives").iterdir():
        entry.rename(folder / entry.name)
    for end in _cuts(path):
        path.write_bytes(whole[:end])
        _refused(path, "")


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_flipped_bits_are_found_by_the_checksum(suffix: str, folder: Path) -> None:
    path = _whole(folder, suffix)
    whole = bytearray(path.read_bytes())
    for place in range(100, 3000, 250):  # within the files
        whole[place] ^= 4
        path.write_bytes(whole)
        _refused(path, "")
        whole[place] ^= 4


def test_zips_that_cannot_be_read_have_a_message(folder: Path) -> None:
    path = _whole(folder, ".zip")
    whole = path.read_bytes()
    for at, value, message in (
        (8, 1, "is encrypted"),
        (10, 9, r"by method 9 \(deflate64\)"),
        (10, 77, r"77 \(unknown\)"),
    ):
        content = bytearray(whole)
        content[content.index(b"PK\1\2") + at] = value
        path.write_bytes(content)
        _refused(path, message)


def _limits(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    for name, value in values.items():
        monkeypatch.setattr(module, name, value)


def test_bombs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _limits(monkeypatch, MOST_BYTES=10_000)
    makers: list[Callable[[], Path]] = [
        lambda: _tar(folder / "a.tar.gz", [_member("a"), _member("b")], bytes(1_000_000)),
        lambda: _zipped(folder / "a.zip", bytes(1_000_000)),
    ]
    for make in makers:
        _refused(make(), "more than [0-9,]+")
    with gzip.open(folder / "tail.tar.gz", "wb") as file:
        file.write(_tar(folder / "b.tar", [_member("a")]).read_bytes() + bytes(5_000_000))
    _refused(folder / "tail.tar.gz", "too much data follows its end")
    _limits(monkeypatch, MOST_FILES=3)
    _refused(_tar(folder / "many.tar", [_member(str(n)) for n in range(4)]), "more than 3 files")


def _zipped(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a", content)
    return path


def test_a_header_that_would_be_read_into_memory(folder: Path) -> None:
    header = _member("././@PaxHeader", tarfile.XHDTYPE)
    header.size = 2**40
    (folder / "header.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    _refused(folder / "header.tar", "a header of 1,099,511,627,776 bytes")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.DIRTYPE, b"Z"])
def test_a_size_below_0_does_not_come_for_ever(kind: bytes, folder: Path) -> None:
    header = bytearray(_member("b", kind).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(-512, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "size.tar").write_bytes(_member("a").tobuf() + header + bytes(1024))
    if kind == tarfile.DIRTYPE:  # its size does not count
        assert (unpacked(folder / "size.tar") / "b").is_dir()
    else:
        _refused(folder / "size.tar", "cut off|corrupt|neither a file")


def test_more_than_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = _member("a")
    member.size = 2**40
    (folder / "large.tar").write_bytes(member.tobuf() + bytes(2048))
    monkeypatch.setattr(module, "MOST_BYTES", 2**50)
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("Free", (), {"free": 7}))
    _refused(folder / "large.tar", "only 7 are free")


def test_a_later_member_of_the_same_name_wins(folder: Path) -> None:
    with tarfile.open(folder / "twice.tar", "w") as tar:
        for content in (b"longer, first", b"second"):
            member = _member("twice/a.txt")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert (unpacked(folder / "twice.tar") / "twice" / "a.txt").read_bytes() == b"second"


def test_what_was_left_of_other_archives_is_removed_unless_a_process_is_at_it(folder: Path) -> None:
    cache = cache_folder("archives")
    dead = temporary_name(cache)
    (dead / "half").mkdir(parents=True)
    with new_temporary_folder(cache) as alive:
        unpacked(_whole(folder, ".tar"))
        assert not dead.exists() and alive.exists()


def test_a_lock_is_not_opened_through_a_link(folder: Path) -> None:
    (folder / "victim").write_text("precious")
    (folder / "a.lock").symlink_to("victim")
    with pytest.raises(OSError), exclusive(folder / "a"):
        pass
    assert (folder / "victim").read_text() == "precious"
