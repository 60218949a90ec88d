"""Progress bar with an ETA at a terminal; nothing if the output goes to a file or a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.utils.dist import is_main
from lbitcls.utils.logging import interactive

if TYPE_CHECKING:
    from rich.progress import Progress

    from lbitcls.core.runner import EpochRunner


class ProgressHook(Hook):
    """Hook that shows the epoch, iterations done, time left, and the last loss and accuracy, on rank 0."""

    priority = PRIORITIES["LOW"]

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: Any = None
        self._results: dict[str, str] = {}

    def before_run(self, runner: EpochRunner) -> None:
        if not (is_main() and interactive()):
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[results]}"), transient=True)
        total = runner.max_epochs * len(runner.loader)
        self._task = self._progress.add_task("", total=total, completed=runner.iter, results="")
        self._progress.start()

    def before_epoch(self, runner: EpochRunner) -> None:
        self._show(runner, description=f"epoch {runner.epoch + 1}/{runner.max_epochs}")

    def after_iter(self, runner: EpochRunner) -> None:
        self._show(runner, completed=runner.iter)

    def on_record(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        name, shown = {"train": ("loss", "loss"), "val": ("val top-1", "top-1")}.get(record["mode"], ("", ""))
        if shown in record:
            self._results[name] = f"{record[shown]:.4g}"
        self._show(runner, results=" ".join(f"{key} {value}" for key, value in self._results.items()))

    def after_run(self, runner: EpochRunner) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _show(self, runner: EpochRunner, **changes: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, **changes)
