"""`CsvLoggerHook`: the records of a run as a table, `log.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks.log import LOG_TABLE, Writer, logged, read_records
from lbitcls.registry import HOOKS
from lbitcls.utils.files import write_whole
from lbitcls.utils.jsontext import json_text

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


@HOOKS.register_module()
class CsvLoggerHook(Writer):
    """Hook that writes `log.csv` to the work directory: a row for each record, a column for each name in `log.jsonl`.

    A value that a record lacks is an empty cell; a list is JSON text. A column whose name first occurs in a later
    record is added at the end. A resumed run continues the table as it continues `log.jsonl`, from which its rows are
    written again.
    """

    def __init__(self) -> None:
        self._columns: list[str] = []

    def write(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        path, row = runner.work_dir / LOG_TABLE, logged(record, runner.images)
        if self._columns and path.is_file() and row.keys() <= set(self._columns):
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(_line([row.get(name) for name in self._columns]))
            return
        self._rewrite(path, read_records(runner.work_dir))

    def _rewrite(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """Write the whole table, with the columns that its rows have."""
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        lines = [_line(self._columns), *(_line([row.get(name) for name in self._columns]) for row in rows)]
        write_whole(path, lambda temporary: temporary.write_bytes("".join(lines).encode()))


def _line(values: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([_cell(value) for value in values])
    return line.getvalue()


def _cell(value: Any) -> Any:
    return json_text(value) if isinstance(value, (list, tuple, Mapping)) else value
