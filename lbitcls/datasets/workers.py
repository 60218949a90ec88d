"""Signal handling of worker processes: they live until the main process has saved and tells them to stop."""

from __future__ import annotations

import os
import signal
import threading


def outlive_signals(worker: int) -> None:
    """Make this process, a loader's worker, ignore every SIGINT, SIGHUP and SIGUSR1, and SIGTERM from others.

    Ctrl-C and a scheduler's signals reach every process of a job, but the main one still needs its workers to
    finish the iteration. multiprocessing also ends workers with SIGTERM, when a loader is dropped or the
    program exits; ignoring that one would hang both.

    Args:
        worker: Index of the worker, passed by torch.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS lacks it; there, SIGTERM ends a worker whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()


def _end_for(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # the exit code torch expects from a worker that its parent ends
