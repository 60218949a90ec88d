"""Rows of a run, one per epoch: loss and accuracy in training and validation, learning rate, time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks.evaluation_hook import EvaluationHook

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

_GAP = 2  # blanks between two columns
_WIDTHS = {"epoch": 7, "lr": 7, "time": 7, "": 4}
_NUMBER = 6  # columns of a number: 100.00, 0.1234


@dataclass(frozen=True)
class Row:
    """Results of an epoch.

    Attributes:
        cells: Formatted values by column name: `epoch`, `loss`, `top-1`, `val loss`, `val top-1`, …, `lr`, `time`.
        best: True if its weights are the best of their phase so far.
    """

    cells: Mapping[str, str]
    best: bool


class EpochRows:
    """Collector of a run's rows: give it each event of a hook.

    Training values are means over the iterations of the epoch that this process trained; accuracies that cannot be
    below 100 % (top-5 of five classes) are left out.

    Attributes:
        rows: Rows of the epochs completed by this process.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._sums: dict[str, float] = {}
        self._iterations = self._position = 0
        self._rate = 0.0
        self._val: dict[str, float] = {}
        self._began = 0.0

    def before_epoch(self, runner: EpochRunner) -> None:
        """Start an epoch, or the rest of one that is resumed."""
        self._sums, self._val = {}, {}
        self._iterations, self._position = 0, runner.inner_iter
        self._began = time.perf_counter()

    def on_record(self, runner: EpochRunner, record: Mapping[str, Any]) -> None:
        """Collect a record of training or validation."""
        shown = _shown(record, getattr(runner.module, "num_classes", None))
        if record["mode"] == "val":
            self._val = shown
        elif record["mode"] == "train":
            number = record["iter"] - self._position
            self._iterations, self._position, self._rate = self._iterations + number, record["iter"], record["lr"]
            for name in ("loss", "top-1"):
                if name in shown:
                    self._sums[name] = self._sums.get(name, 0.0) + number * shown[name]

    def after_epoch(self, runner: EpochRunner) -> Row:
        """Return the row of the epoch that ended; call it after validation."""
        values = {name: total / self._iterations for name, total in self._sums.items()} if self._iterations else {}
        values |= {f"val {name}": value for name, value in self._val.items()}
        cells = {"epoch": f"{runner.epoch}/{runner.max_epochs}"}
        cells |= {name: f"{value:.4f}" if name.endswith("loss") else f"{value:.2f}" for name, value in values.items()}
        cells |= {"lr": f"{self._rate:.1e}", "time": seconds_text(time.perf_counter() - self._began)}
        validation = runner.find(EvaluationHook)
        best = {} if validation is None else validation.best.get(runner.phase, {})
        row = Row(cells, best.get("epoch") == runner.epoch and bool(self._val))
        self.rows.append(row)
        return row


def _shown(record: Mapping[str, Any], classes: int | None) -> dict[str, float]:
    """Return the results of a record that are numbers, without top-k of k or fewer classes."""
    return {
        name: value
        for name, value in record.items()
        if name == "loss" or (isinstance(value, float) and name not in ("lr", "eta", "time", "data_time"))
        if not (name.startswith("top-") and name != "top-1" and classes is not None and int(name[4:]) >= classes)
    }


def columns_of(rows: Sequence[Row], validates: bool, width: int | None = None) -> list[str]:
    """Return the columns of a table of `rows`, those that fit in `width` characters.

    Args:
        rows: Rows so far; at least one.
        validates: True if the run validates, so that the table has columns for it before the first validation.
        width: Characters in a line; None: no limit.
    """
    found = dict.fromkeys(name for row in rows for name in row.cells)
    val = ["val loss", "val top-1"] if validates else []
    names = ["epoch", *(name for name in ("loss", "top-1") if name in found), *val]
    names += [name for name in found if name.startswith("val ") and name not in names]
    names += ["lr", "time", ""]
    more = [name for name in names if name.startswith("val ") and name not in val]
    for name in (*reversed(more), "lr", "val loss", "top-1", "time", "loss"):
        if width is None or line_width(names) <= width:
            break
        if name in names:
            names.remove(name)
    return names


def line_width(names: Iterable[str]) -> int:
    """Return the number of characters in a line with these columns."""
    return sum(_width(name) + _GAP for name in names) - _GAP


def _width(name: str) -> int:
    return _WIDTHS.get(name, max(_NUMBER, len(name)))


def header(names: Sequence[str]) -> str:
    """Return the table's first line."""
    return _line(names, {name: name for name in names})


def row_line(names: Sequence[str], row: Row) -> str:
    """Return a row as a line below `header`."""
    return _line(names, {**row.cells, "": "best" if row.best else ""})


def _line(names: Sequence[str], cells: Mapping[str, str]) -> str:
    return (" " * _GAP).join(cells.get(name, "").rjust(_width(name)) for name in names).rstrip()


def seconds_text(seconds: float) -> str:
    """Return a time as text: `1.2 s`, from 100 s on `0:01:40`."""
    return f"{seconds:.1f} s" if seconds < 99.95 else str(timedelta(seconds=round(seconds)))
