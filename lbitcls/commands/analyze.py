"""`lbitcls analyze`: draw the curves of runs, and time them."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import LOOK, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `lbitcls analyze`."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="work directories, or files log.jsonl")
    add("--keys", nargs="+", default=["loss", "top-1"], metavar="KEY", help="quantities: loss top-1 val/top-1 lr time")
    add("--x", default="epoch", metavar="NAME", help="epoch (default), iter or images (images seen)")
    add("--names", nargs="+", metavar="NAME", help="of the runs in the legend (default: their folders')")
    add("--out", default="curves.png", metavar="FILE", help="picture to write (default: curves.png)")


@verb("analyze", add_options, LOOK)
def run(args: argparse.Namespace) -> object:
    """Draw the curves of runs, and time them."""
    from lbitcls.workflows.analyzing import analyze_logs

    return analyze_logs(args.runs, args.keys, axis=args.x, names=args.names, out=args.out)
