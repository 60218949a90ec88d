"""Files are written atomically; unwritable paths are detected in advance."""

from __future__ import annotations

import errno
import random
import string
from pathlib import Path

import pytest

from lbitcls.utils.errors import ConfigError
from lbitcls.utils.files import check_writable, link_whole, nearest_path, suggest_path, write_whole


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old.txt").write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(Path("store") / "old.txt")
    write_whole(link, lambda temporary: temporary.write_text("new"))
    assert link.is_symlink() and (tmp_path / "store" / "old.txt").read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["link.txt", "old.txt", "store"]


def test_a_link_to_the_newest_replaces_a_symbolic_one(tmp_path: Path) -> None:
    """`latest.pth` of other tools is a symbolic link to an older checkpoint, which must not change."""
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    (tmp_path / "latest").symlink_to("old")
    link_whole(tmp_path / "new", tmp_path / "latest")
    assert (tmp_path / "latest").read_text() == "new" and (tmp_path / "old").read_text() == "old"


def test_a_link_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not its temporary name, nor the file that it is a name of."""

    def fail(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", *map(str, given))

    (tmp_path / "new").write_text("new")
    monkeypatch.setattr("os.link", fail)
    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(OSError) as found:
        link_whole(tmp_path / "new", tmp_path / "latest")
    assert found.value.filename == str(tmp_path / "latest") and list(tmp_path.iterdir()) == [tmp_path / "new"]


@pytest.mark.parametrize("place", ["new.json", "deep/er/new.json", "old.json", "link.json"])
def test_what_can_be_written_is_asked_without_a_trace(place: str, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "link.json").symlink_to("far/away.json")
    before = sorted(tmp_path.rglob("*"))
    assert check_writable(str(tmp_path / place), "--out", tmp_path / "other.pth") == tmp_path / place
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "old.json").read_text() == "old"
    write_whole(tmp_path / place, lambda temporary: temporary.write_text("new"))
    assert (tmp_path / place).read_text() == "new"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder", "--out must name a file to write; .*folder is a folder"),
        ("/dev/null", "--out must name a file to write; /dev/null is not a regular file"),
        ("file/new.json", "--out .*file/new.json cannot be written: Not a directory; choose a file elsewhere"),
        ("file/deep/new.json", "cannot be written: Not a directory"),
        ("/proc/self/new.json", "/proc/self/new.json cannot be written: "),
        ("/proc/missing/new.json", "/proc/missing/new.json cannot be written: "),
        ("x" * 256, "cannot be written: File name too long"),
        ("input.pth", "--out .*input.pth would replace a file that this command uses; name another"),
        ("link.pth", "--out .*link.pth would replace a file that this command uses"),
    ],
)
def test_what_cannot_be_written(place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.pth").symlink_to("input.pth")
    for name in ("file", "input.pth"):
        (tmp_path / name).write_text(name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        check_writable(tmp_path / place, "--out", tmp_path / "input.pth")
    assert sorted(tmp_path.rglob("*")) == before


def test_link_follows_the_newest(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        link_whole(tmp_path / name, tmp_path / "latest")
        assert (tmp_path / "latest").read_text() == name
    assert (tmp_path / "a").read_text() == "a"


def test_the_nearest_path_of_a_misspelled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = [
        Path("experiments", "resnet18", "lsq_4w4f.py"),
        Path("experiments", "mobilenet", "dsq_2w2f.py"),
        Path("work_dirs", "baseline", "latest.pth"),
    ]
    for place in places:
        place.parent.mkdir(parents=True)
        place.touch()
    draw = random.Random(0)
    for case in range(200):
        place = draw.choice(places)
        parts = list(place.parts)
        at = draw.randrange(len(parts))
        position = draw.randrange(len(parts[at]))
        new = draw.choice(("", draw.choice(string.ascii_letters)))  # a letter is lost, or another one
        parts[at] = parts[at][:position] + new + parts[at][position + 1 :]
        typed = Path(*parts)
        assert nearest_path(typed) == place, case
        assert nearest_path(tmp_path / typed) == tmp_path / place
        if not typed.exists():
            assert suggest_path(typed) == f". Did you mean '{place.name if at == 2 else place}'?"
    assert suggest_path(Path("work_dir", "base_line", "latest.pth"), "*.onnx") == "."
    assert nearest_path(Path("elsewhere", "latest.pth")) is None
    assert suggest_path(Path("work_dirs", "baseline", "latest.pth", "x")) == "."
