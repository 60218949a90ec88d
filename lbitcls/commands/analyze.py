"""`lbitcls analyze`: compare runs in a table, plot their curves, and report their iteration times."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import LOOK, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls analyze`."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="work directories, log.jsonl files, or folders of work directories")
    add(
        "--format",
        choices=("table", "markdown", "csv", "json"),
        help="form of the table of runs (default: table, with times and curves); others print the table alone",
    )
    add(
        "--keys",
        nargs="+",
        metavar="KEY",
        help="quantities to plot, such as loss top-1 val/top-1 lr time (default: loss top-1)",
    )
    add("--x", default="epoch", metavar="NAME", help="x-axis: epoch (default), iter or images (images seen)")
    add("--names", nargs="+", metavar="NAME", help="names of the runs (default: their folders' names)")
    add(
        "--out", metavar="FILE", help="file to write: a figure, or .md, .csv, .json for the table (default: curves.png)"
    )


@verb("analyze", add_options, LOOK)
def run(args: argparse.Namespace) -> object:
    """Compare runs in a table, plot their curves, and report their iteration times.

    Examples:
        lbitcls analyze work_dirs/digits_lsq_4w4f
        lbitcls analyze work_dirs/lsq work_dirs/dsq --keys val/top-1 lr --out runs.png
    """
    from lbitcls.workflows.analyzing import analyze_runs

    return analyze_runs(args.runs, args.keys, axis=args.x, names=args.names, form=args.format, out=args.out)
