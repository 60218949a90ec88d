"""`lbitcls schema`: write the JSON Schema of configs, for editors."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls schema`."""
    add = parser.add_argument
    add("--out", metavar="FILE", help="file to write (default: standard output)")
    add("--import", dest="modules", nargs="+", default=[], metavar="MODULE", help="modules with your own components")


@verb("schema", add_options, START)
def run(args: argparse.Namespace) -> object:
    """Write the JSON Schema of configs, with which an editor completes and checks them.

    Examples:
        lbitcls schema --out config.schema.json
        lbitcls schema --import my_layers --out config.schema.json
    """
    from lbitcls.utils.custom import import_custom
    from lbitcls.workflows.schema import write_schema

    import_custom({"imports": args.modules})
    return write_schema(args.out)
