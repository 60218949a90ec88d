"""Curves of one or more runs, and their iteration times: `lbitcls analyze`."""

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
    figure = draw_curves(runs, keys, axis)
    columns = ("run", "iterations", "time per iteration", "fastest epoch", "slowest epoch", "waiting for data")
    print_table("Time", columns, [_row(run, measure_time(run)) for run in runs])
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
