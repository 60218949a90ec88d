"""Watch over a case: Python's audit events, memory, and files that changed."""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {  # events with a path first, or two
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
}
_PROCESSES = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"),
}
_DEVICES = ("/dev/null", "/dev/tty")
_FREE_MIB = 6144  # of address space, in addition to what a process has: a case that asks for more gets no memory


class Guard:
    """Notes what this process does outside of `folder`. It cannot be removed: make one in a process of its own.

    Args:
        folder: Folder in which cases may write.
        secrets: Folder that no case may read.
    """

    def __init__(self, folder: Path, secrets: Path) -> None:
        self.folder, self.secrets = os.path.realpath(folder), os.path.realpath(secrets)
        self.found: list[str] = []
        self.on = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            self._opened(given[0], given[2])
        elif event in _PATHS:
            for path in given[:2]:
                if isinstance(path, (str, bytes, os.PathLike)) and self._is_outside(path):
                    self.found.append(f"{event} outside its folder: {os.fsdecode(path)!r:.200}")
        elif event in _PROCESSES:
            callers = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_stack()[-8:-1]]
            self.found.append(f"{event} {given!r:.200} by {' > '.join(callers)}")

    def _opened(self, path: Any, flags: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        if isinstance(flags, int) and flags & _WRITES and self._is_outside(path):
            self.found.append(f"opened for writing outside its folder: {os.fsdecode(path)!r:.200}")
        elif os.path.realpath(path).startswith(self.secrets):
            self.found.append(f"opened a file that is not its own: {os.fsdecode(path)!r:.200}")

    def _is_outside(self, path: Any) -> bool:
        text = os.fsdecode(path)
        if "\0" in text or text in _DEVICES:
            return False
        real = os.path.realpath(text)
        return real != self.folder and not real.startswith(self.folder + os.sep)

    def taken(self) -> list[str]:
        """Return what was noted since the last call."""
        found, self.found = self.found, []
        return found


def limit_memory() -> None:
    """Bound this process: address space, the size of a file, and no core files."""
    used = _status("VmSize") // 1024
    resource.setrlimit(resource.RLIMIT_AS, ((used + _FREE_MIB) * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))


def reset_peak() -> float:
    """Forget the largest memory of this process so far; return its memory now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") / 1024


def peak() -> float:
    """Return the largest memory of this process since `reset_peak`, in MiB."""
    return _status("VmHWM") / 1024


def _status(name: str) -> int:
    """Return a value of this process's status, in KiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def digest(folder: Path, without: Iterable[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder` by its path; of links and others their kind."""
    left_out = set(without)
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_file():
            found[name] = f"{path.lstat().st_mode:o}"
        elif path.name not in left_out:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
