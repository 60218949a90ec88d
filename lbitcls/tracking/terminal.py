"""Display of a run on standard output: one row per epoch and, at a terminal, a progress bar below."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks import Hook
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.hooks.hook import PRIORITIES
from lbitcls.core.hooks.log import LogHook
from lbitcls.tracking.epoch_rows import EpochRows, columns_of, header, row_line
from lbitcls.utils.dist import is_main
from lbitcls.utils.logging import DISPLAY, interactive, terminal_width

if TYPE_CHECKING:
    from rich.progress import Progress

    from lbitcls.core.runner import EpochRunner

_REFRESH = 0.1  # seconds between two updates of the bar


class TerminalHook(Hook):
    """Hook that prints a row for each epoch, the best one marked, and shows the epoch's progress and the time left.

    Rank 0 shows them; without a terminal there is no bar.
    """

    priority = PRIORITIES["LOW"]

    def __init__(self) -> None:
        self._table = EpochRows()
        self._columns: list[str] = []
        self._progress: Progress | None = None
        self._task: Any = None
        self._updated = 0.0
        self._loss = ""

    def before_run(self, runner: EpochRunner) -> None:
        if not (is_main() and interactive()):
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.text import Text

        class Left(ProgressColumn):
            """Column with the time left, which goes on between iterations, during validation."""

            def render(self, task: Task) -> Text:
                return Text(_left(task.fields["end"]))

        others = len(f"epoch {runner.max_epochs}/{runner.max_epochs} {len(runner.loader)}/{len(runner.loader)}")
        width = max(4, min(20, terminal_width() - others - len(" 0:00:00 left loss 0.1234 ") - 2))
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=width), MofNCompleteColumn())
        self._progress = Progress(*columns, Left(), TextColumn("{task.fields[loss]}"), transient=True)
        self._task = self._progress.add_task("", total=len(runner.loader), end=None, loss="")
        self._progress.start()

    def before_epoch(self, runner: EpochRunner) -> None:
        self._table.before_epoch(runner)
        if self._progress is not None:
            description = f"epoch {runner.epoch + 1}/{runner.max_epochs}"
            self._progress.update(self._task, description=description, completed=runner.inner_iter)

    def after_iter(self, runner: EpochRunner) -> None:
        now = time.monotonic()
        last = runner.inner_iter == len(runner.loader)
        if self._progress is None or (now - self._updated < _REFRESH and not last):
            return
        self._updated = now
        end = now + seconds_left(runner)
        self._progress.update(self._task, completed=runner.inner_iter, end=end, loss=self._loss)

    def on_record(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        self._table.on_record(runner, record)
        if record["mode"] == "train" and "loss" in record:
            self._loss = f"loss {record['loss']:.4g}"

    def after_epoch(self, runner: EpochRunner) -> None:
        if not is_main():
            return
        row = self._table.after_epoch(runner)
        if not self._columns:
            width = terminal_width() - 1 if interactive() else None
            self._columns = columns_of([row], runner.find(EvaluationHook) is not None, width)
            runner.logger.info(header(self._columns), extra=DISPLAY)
        runner.logger.info(row_line(self._columns, row), extra=DISPLAY)

    def after_run(self, runner: EpochRunner) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def seconds_left(runner: EpochRunner) -> float:
    """Return the estimated time in seconds until the last epoch ends, the same as in the log."""
    log = runner.find(LogHook)
    return log.clock.remaining(runner) if log else 0.0


def _left(end: float | None) -> str:
    """Return the time until `end`, in seconds of the monotonic clock, as text; `''` if it is unknown."""
    return "" if end is None else f"{timedelta(seconds=max(0, int(end - time.monotonic())))} left"
