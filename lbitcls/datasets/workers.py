"""Worker processes: they live until the main process has saved and tells them to stop, and end without a word."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import TracebackType


def outlive_signals(worker: int) -> None:
    """Make this process, a loader's worker, ignore every SIGINT, SIGHUP and SIGUSR1, and SIGTERM from others.

    Ctrl-C and a scheduler's signals reach every process of a job, but the main one still needs its workers to
    finish the iteration. multiprocessing also ends workers with SIGTERM, when a loader is dropped or the
    program exits; ignoring that one would hang both.

    Args:
        worker: Index of the worker, passed by torch.
    """
    sys.excepthook = _unless_left_alone
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS lacks it; there, SIGTERM ends a worker whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()


def _end_for(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # the exit code torch expects from a worker that its parent ends


def _unless_left_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error with its traceback, unless the main process has ended in the middle of a batch's transfer.

    multiprocessing's thread that hands over tensors reports that in a worker; the main process has said why it ended.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
