"""`lbitcls check`: check a config without training, and list all problems."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, option_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls check`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder to search for relative data paths")
    option_arguments(parser)


@verb("check", add_options, START)
def run(args: argparse.Namespace) -> object:
    """Check a config without training, and list all problems.

    Examples:
        lbitcls check configs/quickstart/digits_lsq_4w4f.py
        lbitcls check flowers.py --data-root photos --options optimizer.lr=0.01
    """
    cfg = read_config(args)
    from lbitcls.workflows.checking import check_config

    return check_config(cfg, data_root=args.data_root)
