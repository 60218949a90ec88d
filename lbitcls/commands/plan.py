"""`lbitcls plan`: show how each layer is quantized, and its cost."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, option_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls plan`."""
    add = parser.add_argument
    add("config", help="config file; without a quant_transformer, the float model is shown")
    add("--shape", type=int, nargs=3, metavar=("C", "H", "W"), help="image shape (default: from the test pipeline)")
    option_arguments(parser)


@verb("plan", add_options, START)
def run(args: argparse.Namespace) -> object:
    """Show how each layer is quantized, and its cost.

    Examples:
        lbitcls plan configs/quickstart/digits_lsq_4w4f.py
        lbitcls plan flowers.py --shape 3 192 192
    """
    cfg = read_config(args)
    from lbitcls.workflows.planning import show_plan

    return show_plan(cfg, args.shape)
