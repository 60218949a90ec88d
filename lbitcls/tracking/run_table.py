"""Runs side by side, and their mean and deviation over seeds: as text, Markdown, CSV, JSON, HTML."""

from __future__ import annotations

import csv
import io
import os
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from lbitcls.tracking.run_reading import RunRow
from lbitcls.utils.jsontext import json_text, with_nulls

Cell = str
MEASURED = (
    *("float_top1", "quantized_top1", "gap", "exported_top1"),
    *("size_kib", "exported_kib", "minutes"),
)
"""Quantities whose mean and deviation over seeds are computed."""
_TITLES = {
    **{"name": "run", "method": "method", "bits": "bits", "n": "seeds", "float_top1": "float"},
    **{"quantized_top1": "quantized", "gap": "gap", "exported_top1": "exported", "size_kib": "KiB"},
    **{"exported_kib": "file KiB", "epoch": "epoch", "minutes": "minutes", "state": "state"},
}
_FORMATS = {"gap": "{:+.2f}", "size_kib": "{:.1f}", "exported_kib": "{:.1f}", "minutes": "{:.1f}", "epoch": "{}"}
_FIELDS = (
    *("name", "state", "method", "bits", "seed", "float_top1", "quantized_top1", "gap"),
    *("exported_top1", "size_kib", "exported_kib", "epoch", "minutes", "path"),
)
"""Values of a run in CSV and JSON, in order."""
_RUNS = "Runs"
_SEEDS = "Mean ± standard deviation over seeds"


@dataclass(frozen=True)
class SeedGroup:
    """Complete runs of one config that differ in the seed alone.

    Attributes:
        name: Beginning that the runs' names have in common, or the name of their folder.
        method: Quantization method.
        bits: Bits of most quantized layers.
        n: Number of seeds.
        mean: Mean of each quantity of `MEASURED`; None if a run lacks it.
        deviation: Sample standard deviation (n - 1) of each; None for one seed.
        runs: Names of the runs.
    """

    name: str
    method: str | None
    bits: str | None
    n: int
    mean: dict[str, float | None]
    deviation: dict[str, float | None]
    runs: tuple[str, ...]


class RunTable:
    """Table of runs, from `compare_runs`; in a notebook, the last value of a cell is shown as a table.

    Args:
        rows: Results of the runs.

    Attributes:
        rows: Results of the runs, in the given order.
        groups: Complete runs by config, each group with its mean and deviation over seeds.

    Example:
        >>> table = RunTable([RunRow(name="a", path="a", state="complete", float_top1=98.0, quantized_top1=97.5)])
        >>> print(table.to_markdown())
        | run | float | quantized | gap |
        |---|---:|---:|---:|
        | a | 98.00 | 97.50 | -0.50 |
        <BLANKLINE>
    """

    def __init__(self, rows: Sequence[RunRow]) -> None:
        self.rows = tuple(rows)
        self._by_recipe = _groups(self.rows)
        self.groups = tuple(self._by_recipe.values())

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[RunRow]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"RunTable of {len(self.rows)} runs: {', '.join(row.name for row in self.rows)}"

    def records(self) -> list[dict[str, Any]]:
        """Return a flat dict per run, for `pandas.DataFrame`: its values, and those of its group.

        `n` is the number of seeds in the group, `quantized_top1_mean` and `quantized_top1_std` are the group's mean and
        deviation. They are None for a run that is in no group, because it is not complete.
        """
        return [_record(row, self._group_of(row)) for row in self.rows]

    def to_csv(self) -> str:
        """Return `records` as CSV with a header; unknown values are empty."""
        records, text = self.records(), io.StringIO()
        writer = csv.DictWriter(text, list(_record(RunRow(name="", path="", state=""), None)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue()

    def to_json(self) -> str:
        """Return `{"runs": […], "seeds": […]}` as JSON: the runs, and their groups."""
        runs = [_values(row) for row in self.rows]
        return json_text(with_nulls({"runs": runs, "seeds": [asdict(group) for group in self.groups]}), indent=2) + "\n"

    def to_markdown(self) -> str:
        """Return the runs as a Markdown table, and a second table of the groups if a config has several seeds."""
        tables = [_markdown(columns, cells) for _, columns, cells in self._tables()]
        return f"\n{_SEEDS}:\n\n".join(tables)

    def to_text(self) -> str:
        """Return the runs as aligned text, and a second table of the groups if a config has several seeds."""
        return "\n".join(f"{title}\n{_aligned(columns, cells)}" for title, columns, cells in self._tables())

    def _repr_html_(self) -> str:
        return "\n".join(_html(*table) for table in self._tables())

    def _group_of(self, row: RunRow) -> SeedGroup | None:
        return self._by_recipe.get(row.recipe or "") if row.complete else None

    def _tables(self) -> list[tuple[str, list[str], list[list[Cell]]]]:
        """Return title, columns and cells of each table to show; columns without a value are left out."""
        tables = [(_RUNS, *_shown([_cells(row) for row in self.rows]))]
        if any(group.n > 1 for group in self.groups):
            tables.append((_SEEDS, *_shown([_group_cells(group) for group in self.groups])))
        return tables


def _groups(rows: Sequence[RunRow]) -> dict[str, SeedGroup]:
    """Return the groups of complete runs by config, in order; of several runs with one seed the last counts."""
    by_recipe: dict[str, dict[Any, RunRow]] = {}
    for row in rows:
        if row.complete and row.recipe:
            by_recipe.setdefault(row.recipe, {})[row.seed] = row
    return {recipe: _group(list(by_seed.values())) for recipe, by_seed in by_recipe.items()}


def _group(members: list[RunRow]) -> SeedGroup:
    values = {name: [getattr(row, name) for row in members] for name in MEASURED}
    known = {name: None if None in found else found for name, found in values.items()}
    several = len(members) > 1
    first = members[0]
    return SeedGroup(
        name=_common_name(members),
        method=first.method,
        bits=first.bits,
        n=len(members),
        mean={name: None if found is None else statistics.fmean(found) for name, found in known.items()},
        deviation={name: statistics.stdev(found) if found and several else None for name, found in known.items()},
        runs=tuple(row.name for row in members),
    )


def _common_name(rows: Sequence[RunRow]) -> str:
    """Return the beginning that the runs' names have in common, without "seed" at its end.

    If there is none, as for `lsq/seed1` and `lsq/seed2`, return the name of the folder that contains the runs,
    or the first run's if there are several.
    """
    if len(rows) == 1:
        return rows[0].name
    common = os.path.commonprefix([row.name for row in rows])  # noqa: RUF071 - of the characters, as intended
    kept = re.sub(r"[\W_]*(?:(?<![a-z])s(?:eed)?)?[\W_]*$", "", re.sub(r"\d+$", "", common))
    folders = {str(Path(row.path).resolve().parent) for row in rows}
    return kept or (Path(folders.pop()).name if len(folders) == 1 else rows[0].name)


def _values(row: RunRow) -> dict[str, Any]:
    """Return a run's values, with `gap`, without its config."""
    return {name: getattr(row, name) for name in _FIELDS}


def _record(row: RunRow, group: SeedGroup | None) -> dict[str, Any]:
    record = {**_values(row), "n": None if group is None else group.n}
    for name in MEASURED:
        record[f"{name}_mean"] = None if group is None else group.mean[name]
        record[f"{name}_std"] = None if group is None else group.deviation[name]
    return record


def _cells(row: RunRow) -> dict[str, Cell]:
    cells = {name: _text(name, getattr(row, name)) for name in _TITLES if name not in ("n", "state")}
    return {**cells, "state": "" if row.complete else row.state}


def _group_cells(group: SeedGroup) -> dict[str, Cell]:
    cells = {"name": group.name, "method": group.method or "", "bits": group.bits or "", "n": str(group.n)}
    for name in MEASURED:
        mean, deviation = group.mean[name], group.deviation[name]
        spread = "" if deviation is None else f" ± {_text(name, deviation).lstrip('+')}"
        cells[name] = _text(name, mean) + spread
    return cells


def _text(name: str, value: Any) -> Cell:
    if value is None:
        return ""
    return value if isinstance(value, str) else _FORMATS.get(name, "{:.2f}").format(value)


def _shown(rows: list[dict[str, Cell]]) -> tuple[list[str], list[list[Cell]]]:
    columns = [name for name in _TITLES if any(row.get(name) for row in rows)]
    return columns, [[row[name] for name in columns] for row in rows]


def _numeric(name: str) -> bool:
    return name in MEASURED or name in ("n", "epoch")


def _aligned(columns: list[str], rows: list[list[Cell]]) -> str:
    lines = [[_TITLES[name] for name in columns], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.rjust if _numeric(name) else str.ljust for name in columns]
    cells = ([side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)] for line in lines)
    return "".join(f"{'  '.join(line).rstrip()}\n" for line in cells)


def _markdown(columns: list[str], rows: list[list[Cell]]) -> str:
    lines = [[_TITLES[name] for name in columns], *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    text = [f"| {' | '.join(cells)} |\n" for cells in lines]
    rule = "".join("---:|" if _numeric(name) else "---|" for name in columns)
    return "".join([text[0], f"|{rule}\n", *text[1:]])


def _html(title: str, columns: list[str], rows: list[list[Cell]]) -> str:
    head = "".join(f"<th>{escape(_TITLES[name])}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
