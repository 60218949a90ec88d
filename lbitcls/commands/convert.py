"""`lbitcls convert`: convert published weights to a checkpoint, or a checkpoint to safetensors and back."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls convert`."""
    add = parser.add_argument
    add("source", help="checkpoint, or published weights, such as resnet20-12fca82f.th or res20_4bit.pth.tar")
    add("target", help="checkpoint to write, .pth or .safetensors")
    add(
        "--format",
        metavar="NAME",
        help="format of the source: cifar-resnet (option-A shortcuts), apot-resnet20 (the APoT authors' quantized "
        "networks) or weights (a checkpoint of lbitcls, unchanged); default: found by what is in it",
    )
    add("--bits", type=int, metavar="N", help="bits of apot-resnet20, 2 to 8 or 32 (default: as in the source's name)")


@verb("convert", add_options, START)
def run(args: argparse.Namespace) -> object:
    """Convert published weights to a checkpoint, or a checkpoint to safetensors and back.

    Examples:
        lbitcls convert resnet20-12fca82f.th resnet20.pth
        lbitcls convert work_dirs/flowers/best_top-1.pth flowers.safetensors
    """
    from lbitcls.workflows.converting import convert_checkpoint

    model = convert_checkpoint(args.source, args.target, args.format, args.bits)
    print(f"wrote {args.target}; its model is\n{model}")
    return model
