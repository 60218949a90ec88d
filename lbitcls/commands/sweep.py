"""`lbitcls sweep`: train a config once for each combination of option values."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import TRAIN, option_arguments, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls sweep`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("--work-dir", metavar="DIR", help="folder of the sweep (default: work_dirs/CONFIG_sweep)")
    add("--jobs", type=int, default=1, metavar="N", help="number of runs that train at the same time (default: 1)")
    add("--data-root", metavar="DIR", help="folder to search for relative data paths")
    option_arguments(parser)


@verb("sweep", add_options, TRAIN)
def run(args: argparse.Namespace) -> object:
    """Train a config once for each combination of option values.

    Examples:
        lbitcls sweep flowers.py --options optimizer.lr=0.003,0.01,0.03 seed=1,2
        lbitcls sweep flowers.py --jobs 2 --options quant_transformer.quan_policy.Conv2d.num_bit_w=2,3,4 total_epochs=10
    """
    from lbitcls.workflows.sweeping import sweep

    return sweep(args.config, args.options, work_dir=args.work_dir, jobs=args.jobs, data_root=args.data_root)
