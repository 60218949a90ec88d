"""`lbitcls plan`: show what becomes of each layer, and what it costs."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, option_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `lbitcls plan`."""
    add = parser.add_argument
    add("config", help="config file; of one without a quant_transformer the float model is shown")
    add("--shape", type=int, nargs=3, metavar=("C", "H", "W"), help="an image (default: as the test pipeline makes it)")
    option_arguments(parser)


@verb("plan", add_options, START)
def run(args: argparse.Namespace) -> object:
    """Show what becomes of each layer, and what it costs."""
    cfg = read_config(args)
    from lbitcls.workflows.planning import show_plan

    return show_plan(cfg, args.shape)
