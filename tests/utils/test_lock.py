"""The lock of a work directory: who has it is told, who is dead loses it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lbitcls.utils import lock as module
from lbitcls.utils.lock import LOCK, NOTE, RunLock

HOLD = """
import os, sys, time
from pathlib import Path
from lbitcls.utils.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print(lock.take(), flush=True)
if os.fork() == 0:  # a worker process: it outlives a killed parent for a moment, and the lock with it
    os.close(1)
    time.sleep(0.5)
    os._exit(0)
sys.stdin.readline()
lock.release()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that has the lock until it reads a line."""
    call = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "None\n"
    return process


def test_a_second_holder_is_refused_and_told_of_the_first(tmp_path: Path, caplog: Any) -> None:
    process = hold(tmp_path / "a" / "b")
    lock = RunLock(tmp_path / "a" / "b")
    refusal = lock.take()
    assert refusal is not None and f"process {process.pid} on {socket.gethostname()}, started 20" in refusal
    lock.release()  # which it does not have
    assert lock.take() is not None
    process.communicate("\n", timeout=60)
    assert lock.take() is None
    lock.tell()
    assert not caplog.messages
    lock.release()
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {LOCK}


def test_a_dead_ones_lock_is_taken_over(tmp_path: Path, caplog: Any) -> None:
    process = hold(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with RunLock(tmp_path) as lock:
        assert lock.take() is None
        caplog.set_level("INFO")
        lock.tell()
        assert f"process {process.pid} on" in caplog.text and "was killed; its lock is taken over" in caplog.text
        assert RunLock(tmp_path).take() is not None  # also within one process
    assert not (tmp_path / NOTE).exists()


def test_a_note_of_another_host_is_a_warning(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / NOTE).write_text(json.dumps(dict(host="elsewhere", pid=1, started="2026-01-01 00:00:00")))
    with RunLock(tmp_path) as lock:
        assert lock.take() is None
        lock.tell()
    assert caplog.records[0].levelname == "WARNING"
    assert "process 1 on elsewhere, started 2026-01-01 00:00:00, did not end by itself" in caplog.text


@pytest.mark.parametrize(
    "note",
    ["", "null", "[]", '{"pid": "x"}', "\x00", '{"host": "h", "pid": 1e999}', pytest.param("[" * 100_000, id="nested")],
)
def test_a_damaged_note_is_none(tmp_path: Path, note: str, caplog: Any) -> None:
    (tmp_path / NOTE).write_text(note)
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    assert first.take() is None
    (tmp_path / NOTE).write_text(note)
    assert "its process is not noted" in str(second.take())
    first.release()


@pytest.mark.timeout(30)
def test_a_pipe_in_the_place_of_the_note_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NOTE)
    with RunLock(tmp_path) as lock:
        assert lock.take() is None
        assert (tmp_path / NOTE).is_file()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def no_locks(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.FileLock, "acquire", no_locks)
    with RunLock(tmp_path) as lock:
        assert lock.take() is None
        lock.tell()
    assert "without locks: nothing keeps a second run out" in caplog.text
    assert not (tmp_path / NOTE).exists()
