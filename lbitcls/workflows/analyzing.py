"""Runs side by side: table of results, curves, iteration times; `lbitcls analyze`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lbitcls.analysis.curves import Run, Timing, draw_curves, measure_time, read_run
from lbitcls.analysis.figures import FORMATS, check_path, save
from lbitcls.tracking.run_reading import find_runs, read_log, read_row
from lbitcls.tracking.run_table import RunTable
from lbitcls.utils.errors import ConfigError, suggest
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.utils.logging import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = ("loss", "top-1")
CURVES = "curves.png"
TABLES = {"table": "", "markdown": ".md", "csv": ".csv", "json": ".json"}
"""Forms of the table of runs, each with the suffix of its file."""


def compare_runs(paths: str | Path | Sequence[str | Path], names: Sequence[str] | None = None) -> RunTable:
    """Return a table of runs: method, bits, accuracy in float, quantized and exported, size, best epoch, minutes.

    Runs whose configs differ in the seed alone are grouped, with mean and standard deviation. A run that is not
    complete has a row with what is known.

    Args:
        paths: Work directories, `log.jsonl` files, and folders in which work directories are searched for.
        names: Names of the runs; None: their folders' names.

    Returns:
        Table with `rows`, `groups`, `records()`, `to_csv()`, `to_markdown()`, `to_json()`, `to_text()`; a notebook
        shows it as HTML.

    Raises:
        DataError: a path is no run, and no folder that contains runs.
        ConfigError: there are more or fewer names than runs.

    Example:
        >>> compare_runs("work_dirs").to_csv()  # doctest: +SKIP
    """
    runs = find_runs([paths] if isinstance(paths, (str, Path)) else paths)
    return _table(runs, names)


def analyze_runs(
    paths: Sequence[str | Path],
    keys: Sequence[str] | None = None,
    *,
    axis: str = "epoch",
    names: Sequence[str] | None = None,
    form: str | None = None,
    out: str | Path | None = None,
) -> RunTable:
    """Print the table of runs and their iteration times, and draw their curves; or write the table alone.

    Args:
        paths: Runs, as for `compare_runs`.
        keys: Quantities to plot, as for `analyze_logs`; None: those of `KEYS` that were logged.
        axis: x-axis, as for `analyze_logs`.
        names: Names of the runs; None: their folders' names.
        form: Key of `TABLES`: the form of the table that is printed, or written to `out`. With another form than
            `'table'` nothing else is printed or drawn. None: `'table'`, or the form of the file `out`.
        out: File to write: a figure for the curves, or `.md`, `.csv`, `.json` for the table; None: the curves are
            written to `CURVES`, if anything was logged.

    Raises:
        ConfigError: `form` does not suit `out`, no log has a quantity, or an argument is wrong.
        DataError: a path is no run, and no folder that contains runs.
    """
    form, target = _output(form, out)
    runs = find_runs(paths)
    table = _table(runs, names)
    if form != "table":
        _deliver(table, form, target)
        return table
    print(table.to_text())
    logged = [(row.name, log) for row, run in zip(table, runs, strict=True) if (log := read_log(run)) is not None]
    known = {key for _, log in logged for key in log.quantities()}
    drawn = [key for key in KEYS if key in known] if keys is None else keys
    if logged and drawn:
        named = [Run(name, log.records) for name, log in logged]
        _draw(named, drawn, axis, target or CURVES)
    return table


def _table(runs: Sequence[Path], names: Sequence[str] | None) -> RunTable:
    if names is not None and len(names) != len(runs):
        raise ConfigError(f"--names gives {len(names)} names for {len(runs)} runs.")
    return RunTable([read_row(run, name) for run, name in zip(runs, names or _names(runs), strict=True)])


def _names(runs: Sequence[Path]) -> list[str]:
    """Return the names of the runs' folders, or if several are equal the paths from the folder that contains them."""
    folders = [(run if run.is_dir() else run.parent).resolve() for run in runs]
    if len(set(folders)) < len(folders):
        return list(map(str, runs))
    names = [folder.name for folder in folders]
    if len(set(names)) == len(names):
        return names
    above = os.path.commonpath(folders)
    return [os.path.relpath(folder, above) for folder in folders]


def _output(form: str | None, out: str | Path | None) -> tuple[str, Path | None]:
    """Return the form of the table, and the file to write, after a check that it can be written."""
    if form is not None and form not in TABLES:
        raise ConfigError(f"there is no form '{form}'{suggest(form, TABLES)} Known: {', '.join(TABLES)}.")
    if out is None:
        return form or "table", None
    suffix = Path(out).suffix.lower()
    of_file = next((name for name, ending in TABLES.items() if ending and ending == suffix), None)
    if of_file is None and suffix not in FORMATS:
        known = ", ".join(f"*{ending}" for ending in (*FORMATS, *filter(None, TABLES.values())))
        raise ConfigError(f"--out must name a file {known}; got '{out}'.")
    if form not in (None, of_file or "table"):
        raise ConfigError(f"--format {form} does not suit --out {out}; leave one of them out, or let them agree.")
    return of_file or "table", check_path(out) if of_file is None else check_writable(out, "--out")


def _deliver(table: RunTable, form: str, target: Path | None) -> None:
    """Print the table in a form for other programs, or write it to a file."""
    text = {"markdown": table.to_markdown, "csv": table.to_csv, "json": table.to_json}[form]()
    if target is None:
        print(text, end="")
        return
    write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"wrote {target}")


def analyze_logs(
    paths: Sequence[str | Path],
    keys: Sequence[str] = KEYS,
    *,
    axis: str = "epoch",
    names: Sequence[str] | None = None,
    out: str | Path | None = None,
) -> Figure:
    """Plot logged quantities of several runs in one figure, and print their iteration times.

    Args:
        paths: Work directories, or `log.jsonl` files.
        keys: Logged quantities, one panel each: `loss`, `top-1`, `lr`, `time`, `memory`, …. A plain name plots training
            (dashed) and validation; `val/top-1` or `train/loss` plots one of them.
        axis: `'epoch'`, `'iter'` or `'images'` (the number of images trained on).
        names: Legend names of the runs; None: their folders' names.
        out: File for the figure; None: the figure is not written.

    Raises:
        ConfigError: no log has such a quantity, or the axis or the format is unknown.
        DataError: a log is missing or empty.

    Example:
        >>> analyze_logs(["work_dirs/float", "work_dirs/lsq"], ["loss"], axis="images")  # doctest: +SKIP
    """
    if out is not None:
        check_path(out)
    if names is not None and len(names) != len(paths):
        raise ConfigError(f"--names gives {len(names)} names for {len(paths)} runs.")
    runs = _distinct([read_run(path) for path in paths], paths)
    runs = [Run(name, run.records) for name, run in zip(names or [run.name for run in runs], runs, strict=True)]
    return _draw(runs, keys, axis, out)


def _draw(runs: Sequence[Run], keys: Sequence[str], axis: str, out: str | Path | None) -> Figure:
    """Draw the curves of runs, print their iteration times, and write the figure to `out` unless it is None."""
    figure = draw_curves(runs, keys, axis)
    columns = ("run", "iterations", "time per iteration", "fastest epoch", "slowest epoch", "waiting for data")
    trained = [run for run in runs if any(record["mode"] == "train" for record in run.records)]
    print_table("Time", columns, [_row(run, measure_time(run)) for run in trained])
    if out is not None:
        print(f"wrote {save(figure, out)}")
    return figure


def _distinct(runs: list[Run], paths: Sequence[str | Path]) -> list[Run]:
    """Return the runs, each named by its path if several folders have the same name."""
    names = [run.name for run in runs]
    return [
        Run(str(path), run.records) if names.count(run.name) > 1 else run for run, path in zip(runs, paths, strict=True)
    ]


def _row(run: Run, timing: Timing) -> tuple[str, ...]:
    fastest, slowest = (f"{_ms(seconds)} (epoch {epoch})" for epoch, seconds in (timing.fastest, timing.slowest))
    waiting = f"{100 * timing.data / timing.mean:.0f} %" if timing.mean else "-"
    return run.name, f"{timing.iterations:,}", _ms(timing.mean), fastest, slowest, waiting


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"
