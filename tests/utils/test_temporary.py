"""Temporary files: no predictable name, no link followed, nothing left behind for good."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lbitcls.utils import files, temporary
from lbitcls.utils.files import check_folder, check_writable, link_whole, write_whole
from lbitcls.utils.folders import move_folder, write_folder
from lbitcls.utils.temporary import (
    ending_by_signals,
    new_temporary,
    new_temporary_folder,
    remove_leftovers,
    temporary_name,
)


def _write_for_ever(kind: str, folder: str, ready: object) -> None:
    def write(path: Path) -> None:
        (path / "index.html" if kind == "folder" else path).write_bytes(b"x" * 1000)
        ready.set()  # type: ignore[attr-defined]
        time.sleep(600)

    (write_folder if kind == "folder" else write_whole)(Path(folder, "made"), write)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(kind: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = [context.Event(), context.Event()]
    killed, living = (context.Process(target=_write_for_ever, args=(kind, str(tmp_path), event)) for event in ready)
    for process, event in zip((killed, living), ready, strict=True):
        process.start()
        assert event.wait(60)
    assert len(list(tmp_path.iterdir())) == 2 and remove_leftovers(tmp_path) == []
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert len(remove_leftovers(tmp_path)) == 1 and len(list(tmp_path.iterdir())) == 1
    os.kill(living.pid, signal.SIGKILL)
    living.join()
    check_writable(tmp_path / "out.json", "--out")
    assert list(tmp_path.iterdir()) == []


def test_only_files_of_ours_on_this_machine_are_removed(tmp_path: Path) -> None:
    others = [".a.pth.123.tmp", ".lbitcls-00000000-0123456789abcdef.tmp", "a.tmp", ".lbitcls-x.tmp"]
    for name in others:
        (tmp_path / name).write_text("x")
    (tmp_path / "folder").mkdir()
    for target in ("a.tmp", "folder"):
        temporary_name(tmp_path).symlink_to(target)
    os.mkfifo(pipe := temporary_name(tmp_path))
    before = sorted(tmp_path.iterdir())
    assert remove_leftovers(tmp_path) == [] and remove_leftovers(tmp_path / "missing") == []
    assert sorted(tmp_path.iterdir()) == before and pipe.exists()


def test_an_old_folder_is_replaced_and_stays_if_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_folder(tmp_path / "made", lambda draft, text=text: (draft / "a").write_text(text))  # type: ignore[misc]
        assert (tmp_path / "made" / "a").read_text() == text
    with pytest.raises(FileNotFoundError):
        move_folder(tmp_path / "missing", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"] and (tmp_path / "made" / "a").exists()


def test_names_differ_each_time() -> None:
    assert len({temporary_name(Path(".")) for _ in range(100)}) == 100


@pytest.mark.parametrize("act", ["write", "link", "check", "folder"])
def test_a_planted_link_is_not_followed(act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if the name was predictable."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for target in ("victim", "made"):
        (tmp_path / target[0]).symlink_to(target)
        for module in (files, temporary):
            monkeypatch.setattr(module, "temporary_name", lambda folder, name=target[0]: folder / name)
        (tmp_path / "new").write_text("new")
        with pytest.raises(Exception, match=r"exists|cannot be written"):
            if act == "write":
                write_whole(tmp_path / "out", lambda path: path.write_text("x"))
            elif act == "link":
                link_whole(tmp_path / "new", tmp_path / "out")
            elif act == "check":
                check_writable(tmp_path / "out", "--out")
            else:
                check_folder(tmp_path, "--out")
        assert victim.read_text() == "precious" and not (tmp_path / "made").exists()
        assert not (tmp_path / "out").exists() and (tmp_path / target[0]).is_symlink()


def test_a_file_that_was_exchanged_is_not_taken(tmp_path: Path) -> None:
    def exchange(path: Path) -> None:
        path.unlink()
        path.symlink_to("elsewhere")

    with pytest.raises(OSError, match="replaced a temporary file"):
        write_whole(tmp_path / "out", exchange)
    assert list(tmp_path.iterdir()) == []


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "out", lambda path: path.write_text("x"))
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_that_is_being_made_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "epoch").write_text("x")
    replace = Path.replace

    def removed_before(self: Path, target: Path) -> Path:
        assert remove_leftovers(tmp_path) == []
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", removed_before)
    link_whole(tmp_path / "epoch", tmp_path / "latest")
    assert (tmp_path / "latest").samefile(tmp_path / "epoch")


@pytest.mark.parametrize("new", [new_temporary, new_temporary_folder])
def test_what_was_taken_for_a_leftover_is_made_again(new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, calls = temporary.hold, []

    def late(descriptor: int, *args: bool, **kwargs: bool) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            monkeypatch.setattr(temporary, "hold", hold)
            assert len(remove_leftovers(tmp_path)) == 1
            monkeypatch.setattr(temporary, "hold", late)
        return hold(descriptor, *args, **kwargs)

    monkeypatch.setattr(temporary, "hold", late)
    with new(tmp_path):
        assert len(list(tmp_path.iterdir())) == 1 and len(calls) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_as_an_exception_does_unless_it_is_ignored(number: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as raised, ending_by_signals(), new_temporary_folder(tmp_path):
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert raised.value.code == 128 + number and not list(tmp_path.iterdir())
    assert signal.getsignal(number) is before
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        with ending_by_signals():
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
