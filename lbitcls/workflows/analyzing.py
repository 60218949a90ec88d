"""Curves of one or several runs, and the time of their iterations: `lbitcls analyze`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lbitcls.analysis.curves import Run, Timing, draw_curves, measure_time, read_run
from lbitcls.analysis.figures import check_path, save
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def analyze_logs(
    paths: Sequence[str | Path],
    keys: Sequence[str] = ("loss", "top-1"),
    *,
    axis: str = "epoch",
    names: Sequence[str] | None = None,
    out: str | Path | None = None,
) -> Figure:
    """Draw logged quantities of runs against each other, and print the time that their iterations took.

    Args:
        paths: work directories, or files `log.jsonl`.
        keys: quantities of the log, a panel for each: `loss`, `top-1`, `lr`, `time`, `memory`, …; both of training
            (dashed) and of validation, or only `val/top-1`, `train/loss`.
        axis: `'epoch'`, `'iter'` or `'images'` (the number of images learned from).
        names: of the runs in the legend; None: their folders'.
        out: file for the picture; None: none is written.

    Raises:
        ConfigError: no log has such a quantity, or an unknown axis or format.
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
    figure = draw_curves(runs, keys, axis)
    columns = ("run", "iterations", "time per iteration", "fastest epoch", "slowest epoch", "waiting for data")
    print_table("Time", columns, [_row(run, measure_time(run)) for run in runs])
    if out is not None:
        print(f"wrote {save(figure, out)}")
    return figure


def _distinct(runs: list[Run], paths: Sequence[str | Path]) -> list[Run]:
    """The runs; where folders have one name the runs are called by their paths."""
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
