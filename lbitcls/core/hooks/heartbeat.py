"""Sign of life of a run for a watchdog: `heartbeat.json` in the work directory.

The training loop itself rewrites the file, at most every ten seconds, so that a run that hangs stops rewriting it. Its
last content says how the run ended; a process that was killed leaves `running`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.run_files import HEARTBEAT
from lbitcls.utils.dist import is_main
from lbitcls.utils.files import write_whole
from lbitcls.utils.jsontext import json_text

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

_EVERY = 10.0  # seconds


class HeartbeatHook(Hook):
    """Hook that writes `heartbeat.json` on rank 0, from the first iteration on.

    Its entries: `time` (seconds since 1970, UTC), `state` (`running`, then `finished`, `stopped` or `failed`), `run`,
    `epoch` (complete ones), `iter` (in the epoch), `iterations` (of the run), `pid` and `host`.

    Args:
        now: Function that returns the time in seconds since 1970.
    """

    priority = PRIORITIES["VERY_LOW"]

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._written: float | None = None
        self._failed = False

    def after_iter(self, runner: EpochRunner) -> None:
        self._beat(runner)

    def during_validation(self, runner: EpochRunner) -> None:
        self._beat(runner)

    def after_epoch(self, runner: EpochRunner) -> None:
        self._beat(runner)

    def after_run(self, runner: EpochRunner) -> None:
        """Write how the run ended, also if an earlier process trained to the end but was killed before it said so."""
        if self._written is not None or (runner.completed and is_main()):
            self._write(runner)

    def _beat(self, runner: EpochRunner) -> None:
        if is_main() and (self._written is None or not 0 <= self._now() - self._written < _EVERY):
            self._write(runner)

    def _write(self, runner: EpochRunner) -> None:
        self._written = self._now()
        text = json_text(self._content(runner)) + "\n"
        try:
            write_whole(runner.work_dir / HEARTBEAT, lambda path: path.write_text(text, encoding="utf-8"))
        except OSError as error:  # the run goes on: a checkpoint that cannot be written ends it
            if not self._failed:
                runner.logger.warning("%s cannot be written: %s.", error.filename, error.strerror)
            self._failed = True

    def _content(self, runner: EpochRunner) -> dict[str, Any]:
        return {
            "time": self._written,
            "state": runner.state,
            "run": runner.meta.get("run"),
            "epoch": runner.epoch,
            "iter": runner.inner_iter,
            "iterations": runner.iter,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
