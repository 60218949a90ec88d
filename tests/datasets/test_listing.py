"""Folders of images: links, loops, and paths of any length."""

from __future__ import annotations

import codecs
import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbitcls.datasets.folder import read_class_folders, read_list
from lbitcls.datasets.listing import Paths, class_folders, images_below
from lbitcls.starter.survey import survey_folder
from lbitcls.utils.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for kind in ("cat", "dog"):
        for name in ("0.png", "deep/1.png", "deep/er/2.png"):
            path = tmp_path / "photos" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), len(name) * len(kind), np.uint8)).save(path)
    return tmp_path / "photos"


def _names(folder: Path) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in images_below(folder)]


@pytest.mark.parametrize(
    "target", [".", "..", "deep", "deep/er", "../..", "../../photos", "../cat", "again", "/", "deep/../.."]
)
@pytest.mark.parametrize("place", ["aaa", "deep/aaa", "zzz"])
def test_a_link_to_what_is_counted_multiplies_nothing(
    target: str, place: str, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = _names(photos / "cat")
    link = photos / "cat" / place
    link.symlink_to(photos / "cat" / target if target != "/" else target)
    with caplog.at_level(logging.WARNING, "lbitcls"):
        assert _names(photos / "cat") == expected
    assert target == "again" or f"folders that are already counted: {link}" in caplog.text


def test_links_to_files_and_to_other_folders_are_followed_once(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "store"
    (other / "in").mkdir(parents=True)
    (other / "in" / "9.png").write_bytes((photos / "cat" / "0.png").read_bytes())
    (other / "back").symlink_to(photos)
    (photos / "cat" / "b").symlink_to(other)
    (photos / "cat" / "c").symlink_to(other)
    (photos / "cat" / "link.png").symlink_to(photos / "dog" / "0.png")
    assert _names(photos / "cat") == ["0.png", "link.png", "b/in/9.png", "deep/1.png", "deep/er/2.png"]


def test_class_folders_that_are_links(photos: Path, tmp_path: Path) -> None:
    for name, target in (("all", "."), ("up", ".."), ("again", "cat"), ("loop", "loop"), ("birds", "../birds")):
        (photos / name).symlink_to(target)
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "0.png").write_bytes((photos / "cat" / "0.png").read_bytes())
    (photos / "cat" / "dogs").symlink_to("../dog")
    names = class_folders(photos)
    assert names == ["birds", "cat", "dog"]
    paths, labels = read_class_folders(photos, names)
    assert labels == [0] + [1] * 3 + [2] * 3 and len({Path(path).resolve() for path in paths}) == 7
    assert len(survey_folder(photos, workers=1).images) == 7


def test_a_folder_that_holds_only_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(".")
    with pytest.raises(DataError, match="contains no folders"):
        survey_folder(tmp_path)


def test_paths() -> None:
    given = ["a", "", "é/ü.png", "b" * 5000, "\udcff"]
    paths = Paths(given)
    assert [*map(paths.__getitem__, range(len(given)))] == given and paths[-1] == given[-1] and len(paths) == 5
    with pytest.raises(IndexError):
        paths[5]


def test_a_long_line_costs_its_own_length(tmp_path: Path) -> None:
    given = [f"{number}.png" for number in range(100_000)] + ["x" * 4000]
    tracemalloc.start()
    Paths(given)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
    (tmp_path / "list.txt").write_text("x" * 10_000 + "\n")
    with pytest.raises(DataError, match=r"list\.txt:1: expected 'path label'") as caught:
        read_list(tmp_path / "list.txt", tmp_path, 2)
    assert len(str(caught.value)) < 400
    (tmp_path / "list.txt").write_text("a.png " + "1" * 5000)
    with pytest.raises(DataError, match=r"list\.txt:1: label 1+ must be below 2"):
        read_list(tmp_path / "list.txt", tmp_path, 2)


def test_a_long_list_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any ends of lines, and characters of several bytes, wherever the parts end; no more memory than the result."""
    monkeypatch.setattr("lbitcls.utils.files._BLOCK", 7)
    ends = ("\n", "\r\n", "\r", "\n\n", "\x0b", "\x85", "\u2028")
    text = "".join(f"é {number}.png {number % 3}{ends[number % len(ends)]}" for number in range(200))
    (tmp_path / "list.txt").write_bytes(codecs.BOM_UTF8 + text.encode())
    paths, labels = read_list(tmp_path / "list.txt", tmp_path, 3)
    assert [*paths] == [f"{tmp_path}/é {number}.png" for number in range(200)]
    assert labels.tolist() == [number % 3 for number in range(200)]
    (tmp_path / "list.txt").write_bytes(text.encode() + b"\xff 1\n")
    position = len(text.encode())
    with pytest.raises(DataError, match=rf"byte 0xff in position {position}"):
        read_list(tmp_path / "list.txt", tmp_path, 3)


def test_the_memory_of_a_long_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"n{n:08}/image_{n:08}.JPEG 5\n" for n in range(100_000)))
    tracemalloc.start()
    paths, _ = read_list(tmp_path / "list.txt", Path("/photos"), 6)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = len(paths) * len(paths[0])
    assert len(paths) == 100_000 and peak < 4 * size
