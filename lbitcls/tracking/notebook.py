"""Display of a run in a notebook: a table with one row per epoch, and the run's curves, both growing."""

from __future__ import annotations

import base64
import html
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks import Hook
from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.hooks.hook import PRIORITIES
from lbitcls.tracking.epoch_rows import EpochRows, columns_of, header, row_line
from lbitcls.tracking.terminal import seconds_left
from lbitcls.utils.dist import is_main

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

_SHARE = 10  # the curves are drawn again after this many times the time of the last drawing
_REFRESH = 0.5  # seconds between two updates of the line below the table
_CELL = 'style="text-align:right;padding:1px 10px"'


def in_notebook() -> bool:
    """Return True in a notebook's kernel (Jupyter, Colab, VS Code); IPython is not imported for it."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


class NotebookHook(Hook):
    """Hook that shows a live table of the epochs in a notebook, the best marked, above the curves of the run.

    The curves come from `log.jsonl`, so those of a resumed run are complete. A front end without HTML shows the rows as
    text. Drawing takes at most a tenth of the time.
    """

    priority = PRIORITIES["LOW"]

    def __init__(self) -> None:
        self._table = EpochRows()
        self._handle: Any = None
        self._curves = ""
        self._drawn, self._seconds, self._updated = 0.0, 0.0, 0.0

    def before_epoch(self, runner: EpochRunner) -> None:
        self._table.before_epoch(runner)

    def after_iter(self, runner: EpochRunner) -> None:
        if is_main() and time.monotonic() - self._updated >= _REFRESH:
            place = f"epoch {runner.epoch + 1}/{runner.max_epochs}, iteration {runner.inner_iter}/{len(runner.loader)}"
            self._show(runner, f"{place}, {_left(runner)}")

    def on_record(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        self._table.on_record(runner, record)

    def after_epoch(self, runner: EpochRunner) -> None:
        if not is_main():
            return
        self._table.after_epoch(runner)
        last = runner.epoch == runner.max_epochs
        if last or time.monotonic() - self._drawn >= _SHARE * self._seconds:
            self._draw(runner)
        self._show(runner, "" if last else _left(runner))

    def _draw(self, runner: EpochRunner) -> None:
        from lbitcls.analysis.curves import draw_results, read_run
        from lbitcls.analysis.figures import png

        began = time.monotonic()
        validation, calibration = runner.find(EvaluationHook), runner.find(CalibrationHook)
        quantized_from = calibration.epoch if calibration is not None and calibration.epoch < runner.epoch else 0
        try:
            figure = draw_results(read_run(runner.work_dir), validation.best if validation else {}, quantized_from)
            self._curves = f'<img src="data:image/png;base64,{base64.b64encode(png(figure)).decode()}"/>'
        except Exception as error:  # a figure must not end a run
            runner.logger.debug("The curves are not drawn: %s: %s", type(error).__name__, error)
        self._drawn = time.monotonic()
        self._seconds = self._drawn - began

    def _show(self, runner: EpochRunner, below: str) -> None:
        from IPython.display import display

        validates = runner.find(EvaluationHook) is not None
        names = columns_of(self._table.rows, validates)
        page = f"{_table(self._table, names)}<p>{html.escape(below)}</p>{self._curves}"
        lines = [header(names), *(row_line(names, row) for row in self._table.rows), below]
        bundle = {"text/html": page, "text/plain": "\n".join(lines)}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
        self._updated = time.monotonic()


def _left(runner: EpochRunner) -> str:
    return f"{timedelta(seconds=int(seconds_left(runner)))} left"


def _table(table: EpochRows, names: list[str]) -> str:
    """Return the rows as an HTML table, the best in bold."""
    lines = ["<tr>" + "".join(f"<th {_CELL}>{html.escape(name)}</th>" for name in names) + "</tr>"]
    for row in table.rows:
        cells = {**row.cells, "": "best" if row.best else ""}
        tag = ("<b>", "</b>") if row.best else ("", "")
        lines.append("<tr>" + "".join(f"<td {_CELL}>{tag[0]}{cells.get(n, '')}{tag[1]}</td>" for n in names) + "</tr>")
    return f"<table>{''.join(lines)}</table>"
