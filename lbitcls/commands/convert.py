"""`lbitcls convert`: convert published weights to a checkpoint."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls convert`."""
    add = parser.add_argument
    add("source", help="file with published weights, such as resnet20-12fca82f.th")
    add("target", help="checkpoint to write")
    add("--format", default="cifar-resnet", metavar="NAME", help="format of the source: cifar-resnet (option A)")


@verb("convert", add_options, START)
def run(args: argparse.Namespace) -> object:
    """Convert published weights to a checkpoint.

    Examples:
        lbitcls convert resnet20-12fca82f.th resnet20.pth
        lbitcls convert resnet56-4bfd9763.th resnet56.pth --format cifar-resnet
    """
    from lbitcls.workflows.converting import convert_checkpoint

    model = convert_checkpoint(args.source, args.target, args.format)
    print(f"wrote {args.target}; its model is\n{model}")
    return model
