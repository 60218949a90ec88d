"""Liveness of a run's processes: one that dies, stops or hangs ends the run with a line that names it.

A collective does not tell a process that works for an hour from one that will never come, so its time limit cannot
end a hanging run soon. Here a thread of each process beats once a second. It counts up the process's entry in the
group's store and watches that of the next lower rank, in a ring: an entry that stays the same belongs to a process
that was killed or stopped, or to a machine that is unreachable. And it watches its own main thread: one that uses no
processor time, at the same line outside a collective, while no child process works either, hangs; it ends itself. A
process that waits in a collective waits for others, whose threads see to them.

Limits count the beats of the thread that applies them, so that processes which are stopped together do not suspect
each other afterwards.
"""

from __future__ import annotations

import datetime
import os
import socket
import sys
import threading
import time
from pathlib import Path

import torch.distributed as dist

from lbitcls.utils.logging import log_to_file

BEAT = 1.0
"""Seconds between two beats."""
SILENT = 15
"""Beats after which a process whose entry stays the same counts as lost."""

_IDLE = 0.2  # seconds of processor time: less, since the last activity, is that of a wait that polls
_DONE = "done"
_WAITS = (
    os.path.join("torch", "distributed", ""),
    os.path.join("torch", "nn", "parallel", "distributed.py"),
    os.path.join("torch", "autograd", "graph.py"),  # DDP's reduction, within the backward pass
    os.path.join("lbitcls", "core", "guard.py"),
)


class Pulse:
    """Thread that beats for this process and watches another one; `stop` ends it.

    Args:
        rank: Rank of this process.
        world_size: Number of processes, at least 2.
        hang_after: Seconds without activity after which this process counts as hanging; 0: never.
    """

    def __init__(self, rank: int, world_size: int, hang_after: float) -> None:
        self.rank = rank
        self.watched = (rank - 1) % world_size
        self._activity = Activity(hang_after) if hang_after else None
        self._store: dist.TCPStore | None = None
        self._seen = ""
        self._silent = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread: this process leaves the run, and nobody waits for it."""
        self._ended.set()
        self._thread.join(2 * BEAT)

    def _run(self) -> None:
        number = 0
        while not self._ended.wait(BEAT if number else 0):
            number += 1
            problem = self._look(f"{number} {os.getpid()} {socket.gethostname()}")
            if problem is None and self._activity is not None:
                problem = self._activity.look()
                problem = problem and f"process {self.rank} on {socket.gethostname()} (pid {os.getpid()}) {problem}"
            if problem is not None and not self._ended.is_set():
                _end(problem)
        self._exchange(_DONE)

    def _look(self, own: str) -> str | None:
        """Set this process's entry, and return what is wrong with the watched one."""
        found = self._exchange(own)
        if found == _DONE or found != self._seen:
            self._seen, self._silent = found, 0
            return None
        self._silent += 1
        if self._silent < SILENT:
            return None
        _, _, place = self._seen.partition(" ")
        pid, _, host = place.partition(" ")
        where = f" on {host} (pid {pid})" if host else ""
        return (
            f"process {self.watched}{where} has given no sign of life for {SILENT * BEAT:.0f} s: it was killed or "
            "stopped, or its machine cannot be reached."
        )

    def _exchange(self, own: str) -> str:
        """Set this process's entry and return the watched one's; the last one seen if the store does not answer."""
        prefix = f"lbitcls/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/"
        try:
            store = self._store = self._store or _connect()
            store.set(f"{prefix}{self.rank}", own)
            key = f"{prefix}{self.watched}"
            return store.get(key).decode() if store.check([key]) else self._seen
        except (RuntimeError, OSError, ValueError):
            self._store = None
            return self._seen


class Activity:
    """Observer of the main thread: whether it works, waits for other processes, or hangs.

    Args:
        limit: Seconds without activity after which it hangs.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._main = threading.main_thread().ident or 0
        self._place: tuple[str, int] = ("", 0)
        self._used = 0.0
        self._idle = 0.0

    def look(self) -> str | None:
        """Return, once a beat, what is wrong with the main thread; None if nothing is."""
        frame = sys._current_frames().get(self._main)
        if frame is None:
            return None
        place, used = (frame.f_code.co_filename, frame.f_lineno), _processor_time(self._main)
        waits = any(part in place[0] for part in _WAITS)
        if waits or place != self._place or used - self._used > _IDLE:
            self._place, self._used, self._idle = place, used, 0.0
            return None
        self._idle += BEAT
        if self._idle < self.limit:
            return None
        return (
            f"hangs: for {self.limit:.0f} s it has used no processor time, in {frame.f_code.co_name} ({place[0]}, line "
            f"{place[1]}). If it only waits for a disk or a network, raise dist_params.hang_after."
        )


def _connect() -> dist.TCPStore:
    """Return a connection of its own to the group's store: one that the main thread waits on is locked meanwhile."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=5))


def _processor_time(thread: int) -> float:
    """Return the processor time in seconds of a thread of this process, and of all descendants of the process."""
    own = time.clock_gettime(time.pthread_getcpuclockid(thread)) if hasattr(time, "pthread_getcpuclockid") else 0.0
    return own + sum(_time_of(child) for child in _descendants(os.getpid()))


def _descendants(pid: int) -> list[int]:
    """Return the processes that `pid` started, and theirs; none where the system does not list them."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
        except OSError:  # the thread has ended
            continue
    return found


def _time_of(pid: int) -> float:
    """Return the processor time of a process in seconds; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _end(problem: str) -> None:
    """End this process, whose main thread may never wake: with a line, without cleaning up."""
    print(problem, file=sys.stderr, flush=True)
    log_to_file("ERROR", problem)
    os._exit(1)
