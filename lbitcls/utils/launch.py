"""torchrun whose failures are one line each: `python -m lbitcls.utils.launch [options of torchrun] SCRIPT …`.

torchrun reports a failed process by a table and its own traceback, in which the process's message is hard to find.
Exit code: 0, or that of the process that failed first, 128 + the signal's number if a signal ended it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from lbitcls.utils.dist import LAUNCHED

_TOGETHER = 2  # seconds in which the others fail because one did; later the launcher kills them


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes, wait for them, and return the exit code."""
    os.environ[LAUNCHED] = str(time.time())
    arguments = parse_args(list(sys.argv[1:] if argv is None else argv))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(arguments)
    except ChildFailedError as error:
        rank, failure = _cause(error)
        print(f"process {rank} (pid {failure.pid}) {_how(failure)}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


def _cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Return rank and failure of the process that made the others fail: one that was killed, or else the first."""

    began = min(failure.timestamp for failure in error.failures.values())

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, int, int]:
        rank, failure = item
        ended_by_launcher = failure.exitcode == -signal.SIGTERM or failure.timestamp > began + _TOGETHER
        return ended_by_launcher, failure.exitcode if failure.exitcode < 0 else 0, rank

    return min(error.failures.items(), key=order)


def _how(failure: ProcessFailure) -> str:
    if failure.exitcode >= 0:
        return f"ended with exit code {failure.exitcode}; its message is above."
    why = ", as the system does if memory runs out" if failure.exitcode == -signal.SIGKILL else ""
    return f"was killed by {failure.signal_name()}{why}."


if __name__ == "__main__":
    sys.exit(main())
