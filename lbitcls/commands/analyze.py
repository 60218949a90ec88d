"""`lbitcls analyze`: plot the curves of runs, and report their iteration times."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import LOOK, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls analyze`."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="work directories, or log.jsonl files")
    add(
        "--keys",
        nargs="+",
        default=["loss", "top-1"],
        metavar="KEY",
        help="quantities to plot, such as loss top-1 val/top-1 lr time",
    )
    add("--x", default="epoch", metavar="NAME", help="x-axis: epoch (default), iter or images (images seen)")
    add("--names", nargs="+", metavar="NAME", help="legend names of the runs (default: their folders' names)")
    add("--out", default="curves.png", metavar="FILE", help="figure to write (default: curves.png)")


@verb("analyze", add_options, LOOK)
def run(args: argparse.Namespace) -> object:
    """Plot the curves of runs, and report their iteration times.

    Examples:
        lbitcls analyze work_dirs/digits_lsq_4w4f
        lbitcls analyze work_dirs/lsq work_dirs/dsq --keys val/top-1 lr --out runs.png
    """
    from lbitcls.workflows.analyzing import analyze_logs

    return analyze_logs(args.runs, args.keys, axis=args.x, names=args.names, out=args.out)
