"""`lbitcls list`: list the package's configs, methods, backbones, datasets or targets."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls list`."""
    add = parser.add_argument
    add("kind", metavar="KIND", help="what to list: configs, methods, backbones, datasets or targets")
    add("words", nargs="*", default=[], metavar="WORD", help="list only entries with all of these words")


@verb("list", add_options, START)
def run(args: argparse.Namespace) -> object:
    """List the package's configs, methods, backbones, datasets or targets.

    Examples:
        lbitcls list configs resnet18 4w4f
        lbitcls list methods
    """
    from lbitcls.workflows.catalog import print_entries

    return print_entries(args.kind, args.words)
