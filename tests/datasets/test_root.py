"""The rule that finds data, and archives."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from lbitcls.datasets.root import find_data, locate, search_roots, unpacked
from lbitcls.utils.cache import cache_folder
from lbitcls.utils.errors import DataError
from lbitcls.utils.temporary import temporary_name


def _file(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBITCLS_DATA", str(tmp_path / "env"))
    given = [None, tmp_path / "config", str(tmp_path / "flag")]
    places = [tmp_path / place / "set" / "a" for place in ("config", "flag", "env", "data", ".")]
    for place in reversed(places):
        _file(place)
        assert find_data("set/a", search_roots(given), "Test").resolve() == place.resolve()
    assert find_data(places[2].resolve(), search_roots(given), "Test") == places[2]
    assert [root.name for root in search_roots("one")] == ["one", "env", "data", ""]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _file(tmp_path / "sets" / "a")
    assert find_data("~/sets/a", search_roots(), "Test") == tmp_path / "sets" / "a"
    assert find_data("a", search_roots("~/sets"), "Test") == tmp_path / "sets" / "a"


def test_missing_data_says_what_where_and_whether_it_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LBITCLS_DATA", "/nowhere")
    with pytest.raises(DataError) as caught:
        find_data("flowers/train", search_roots(tmp_path / "mine"), "ImageFolder", "It is not downloaded.")
    for part in (
        "ImageFolder",
        "'flowers/train'",
        "flowers.tar.gz",
        f"{tmp_path}/mine",
        "/nowhere",
        f"{tmp_path}/data",
    ):
        assert part in str(caught.value)
    assert "--data-root" in str(caught.value) and str(caught.value).endswith("It is not downloaded.")
    with pytest.raises(DataError, match="^ImageFolder: /no/such/place does not exist"):
        find_data("/no/such/place", search_roots(), "ImageFolder")


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar", ".zip"])
@pytest.mark.parametrize("top", ["flowers/", ""])
def test_archives(tmp_path: Path, suffix: str, top: str) -> None:
    source = _file(tmp_path / "source" / "train" / "rose" / "1.txt", "a rose")
    root = tmp_path / "sets"
    root.mkdir()
    archive = root / f"flowers{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.write(source, f"{top}train/rose/1.txt")
    else:
        with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as tar:
            tar.add(source, f"{top}train/rose/1.txt")
    found = find_data("flowers/train", [root], "Test")
    assert (found / "rose" / "1.txt").read_text() == "a rose"
    assert cache_folder("archives") in found.parents and list(root.iterdir()) == [archive]
    assert find_data(root / "flowers" / "train" / "rose", [], "Test") == found / "rose"
    assert locate("flowers/val", [root]) is None


def test_a_folder_wins_over_its_archive_and_an_earlier_archive_over_a_later_folder(tmp_path: Path) -> None:
    _archive(tmp_path / "one", "from the archive")
    folder = _file(tmp_path / "two" / "flowers" / "a.txt").parent
    assert find_data("flowers", [tmp_path / "one", tmp_path / "two"], "Test") != folder
    shutil.copytree(folder, tmp_path / "one" / "flowers")
    assert find_data("flowers", [tmp_path / "one", tmp_path / "two"], "Test") == tmp_path / "one" / "flowers"


def _archive(folder: Path, text: str) -> Path:
    source = _file(folder / "source.txt", text)
    with tarfile.open(folder / "flowers.tar.gz", "w:gz") as tar:
        tar.add(source, "flowers/a.txt")
    return folder / "flowers.tar.gz"


def test_unpacked_once_and_again_when_the_archive_changes(tmp_path: Path) -> None:
    archive = _archive(tmp_path, "first")
    first = unpacked(archive)
    marker = _file(first / "marker")
    assert unpacked(archive) == first and marker.exists()
    _archive(tmp_path, "second, longer")
    second = unpacked(archive)
    assert second != first
    assert (second / "flowers" / "a.txt").read_text() == "second, longer"


def test_corrupt_archive_names_itself_and_leaves_nothing(tmp_path: Path) -> None:
    archive = _archive(tmp_path, "x" * 100_000)
    archive.write_bytes(archive.read_bytes()[:150])
    with pytest.raises(DataError, match=r"cannot unpack .*flowers\.tar\.gz"):
        unpacked(archive)
    _file(tmp_path / "bad.zip", "no zip")
    with pytest.raises(DataError, match=r"cannot unpack .*bad\.zip"):
        unpacked(tmp_path / "bad.zip")
    left = [entry.name for entry in cache_folder("archives").iterdir() if entry.suffix != ".lock"]
    assert not [name for name in left if name.startswith((".", "bad-"))]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    archive = _archive(tmp_path, "x")
    target = unpacked(archive)
    shutil.rmtree(target)
    stale = _file(temporary_name(target.parent) / "half")
    assert unpacked(archive) == target and not stale.exists()


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(_file(tmp_path / "a.txt"), "../../../escaped.txt")
    with pytest.raises(DataError, match="outside"):
        unpacked(tmp_path / "evil.tar")


def _unpack_in_process(archive: Path, cache: str, results: multiprocessing.Queue) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    folder = unpacked(archive)
    results.put(len(list(folder.rglob("*.txt"))))


def test_processes_at_once(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "many.tar.gz", "w:gz") as tar:
        source = _file(tmp_path / "a.txt")
        for number in range(500):
            tar.add(source, f"many/{number}.txt")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    args = (tmp_path / "many.tar.gz", str(tmp_path / "cache"), results)
    processes = [context.Process(target=_unpack_in_process, args=args) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [500, 500, 500]
    for process in processes:
        process.join()
