"""torchrun whose failures are one line each: `python -m lbitcls.utils.launch [options of torchrun] SCRIPT …`.

torchrun reports a failed process by a table and its own traceback, in which the process's message is hard to find.
Exit code: 0, or that of the process that failed first, 128 + the signal's number if a signal ended it. An error of the
config (2) ends the job at once, whatever `--max_restarts` says: it would occur again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

import torch.distributed.launcher.api as launcher
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from lbitcls.utils.dist import LAUNCHED
from lbitcls.utils.errors import ConfigError

_TOGETHER = 2  # seconds in which the others fail because one did; later the launcher kills them


class _Agent(LocalElasticAgent):
    """torchrun's supervisor of the processes, which it does not restart after an error of the config."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if any(failure.exitcode == ConfigError.exit_code for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes, wait for them, and return the exit code."""
    os.environ[LAUNCHED] = str(time.time())
    arguments = parse_args(list(sys.argv[1:] if argv is None else argv))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    setattr(launcher, LocalElasticAgent.__name__, _Agent)  # `run` has no argument for it
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
