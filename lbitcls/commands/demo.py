"""`lbitcls demo`: show an exported model as a page in the browser."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls demo`."""
    add = parser.add_argument
    add("exported", metavar="EXPORTED", help="folder that lbitcls export --target web wrote, or an .onnx file")
    add("--port", type=int, default=0, metavar="N", help="port of the page on this machine (default: a free one)")
    add("--no-browser", action="store_true", help="only serve the page, without opening a browser")


@verb("demo", add_options, SHIP)
def run(args: argparse.Namespace) -> None:
    """Show an exported model as a page in the browser.

    Examples:
        lbitcls demo flowers
        lbitcls demo flowers.onnx --port 8000 --no-browser
    """
    from lbitcls.workflows.demonstrating import demonstrate

    demonstrate(args.exported, args.port, not args.no_browser)
