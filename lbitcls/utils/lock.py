"""One run at a time in a work directory: a lock that the system takes back when its process ends, however that ends.

Rank 0 of a run holds it. Beside the lock lies a note of who that is, for the message that a second run gets; a note
without a lock says that a run was killed. Where a network file system keeps the locks of each host to itself, the note
is all that a second run on another host sees: a warning tells of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from lbitcls.utils.errors import TrainingError
from lbitcls.utils.files import read_lines, write_whole
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.logging import get_logger

LOCK, NOTE = ".run.lock", ".run.json"
_PATIENCE = 15.0  # seconds in which the worker processes of a killed run end; until then they hold its lock, too
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class RunLock:
    """Lock of a work directory, as a context manager that releases it.

    Args:
        folder: the work directory; `take` makes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK)
        self._said: list[tuple[str, str]] = []
        self._held = False

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def take(self) -> str | None:
        """Take the lock, or say who has it.

        Raises:
            OSError: nothing can be written in the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if not self._acquire():
                return self._refusal()
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._say("WARNING", f"{self.folder} is on a file system without locks: nothing keeps a second run out.")
        self._held = True
        self._take_over()
        note = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_whole(self.folder / NOTE, lambda path: path.write_text(json_text(note) + "\n", encoding="utf-8"))
        return None

    def tell(self) -> None:
        """Log what was found when the lock was taken."""
        for level, text in self._said:
            getattr(get_logger(), level.lower())(text)
        self._said.clear()

    def release(self) -> None:
        """Give the lock back, where this process has it."""
        if self._held:
            self._held = False
            with contextlib.suppress(OSError):
                (self.folder / NOTE).unlink(missing_ok=True)
            self._lock.release()

    def _acquire(self) -> bool:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a file system without flock, where a file's being there locks
                    self._lock.acquire(timeout=0)
                return True
            except Timeout:
                if not _is_dead(self._note()) or time.monotonic() > end:
                    return False
                time.sleep(0.1)

    def _refusal(self) -> str:
        note = self._note()
        text = (
            f"another run is at work in {self.folder}: {_who(note)}. Wait for it or stop it, or name another folder "
            "with --work-dir."
        )
        if _is_dead(note):  # a file system without flock: the lock is that a file is there
            text += f" That process is gone; if it left no others, delete {self.folder / LOCK}."
        return text

    def _take_over(self) -> None:
        note = self._note()
        if note is None:
            return
        if note["host"] == socket.gethostname():
            self._say("INFO", f"The last run in {self.folder}, {_who(note)}, was killed; its lock is taken over.")
        else:
            self._say(
                "WARNING",
                f"The last run in {self.folder}, {_who(note)}, did not end by itself. If it is still at work, end this "
                "one: their hosts do not see each other's locks.",
            )

    def _say(self, level: str, text: str) -> None:
        self._said.append((level, text))

    def _note(self) -> dict[str, Any] | None:
        """Who holds the lock, or did when it was killed; None where that is not noted."""
        try:
            note = json.loads("\n".join(read_lines(self.folder / NOTE)))
            return {"host": str(note["host"]), "pid": int(note["pid"]), "started": str(note["started"])}
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None


def check_refusal(refusal: str | None) -> None:
    """Raise `TrainingError` with the words of `RunLock.take`, if there are any."""
    if refusal is not None:
        raise TrainingError(refusal)


def is_running(folder: Path) -> bool:
    """Return True if a run is at work in `folder`: one of this host that lives, or one of another host."""
    note = RunLock(folder)._note()
    return note is not None and not _is_dead(note)


def _who(note: dict[str, Any] | None) -> str:
    return f"process {note['pid']} on {note['host']}, started {note['started']}" if note else "its process is not noted"


def _is_dead(note: dict[str, Any] | None) -> bool:
    """Return True if the noted process ran on this host and has ended."""
    if note is None or note["host"] != socket.gethostname() or note["pid"] <= 0:
        return False
    try:
        os.kill(note["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
