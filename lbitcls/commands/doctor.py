"""`lbitcls doctor`: examine a quantized model, or find the bits that a float model can take."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import LOOK, option_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls doctor`."""
    add = parser.add_argument
    add("config", help="config of the model")
    add("checkpoint", help="its checkpoint: quantized, or with --bits float")
    add("images", nargs="?", metavar="IMAGES", help="image, or folder of images (default: images of data.test)")
    add("--bits", action="store_true", help="for a float model: find the bits, 8 to 2, that each layer can take")
    add("--json", metavar="FILE", help="write all results to this JSON file")
    add("--num-images", type=int, default=64, metavar="N", help="maximum number of images (default: 64)")
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder to search for relative data paths")
    option_arguments(parser)


@verb("doctor", add_options, LOOK)
def run(args: argparse.Namespace) -> object:
    """Examine a quantized model, or find the bits that a float model can take.

    Examples:
        lbitcls doctor flowers.py work_dirs/flowers/best_top-1.pth
        lbitcls doctor flowers.py work_dirs/flowers/best_float_top-1.pth --bits --json bits.json
    """
    cfg = read_config(args)
    from lbitcls.workflows.examining import examine_checkpoint, recommend_bits

    examine = recommend_bits if args.bits else examine_checkpoint
    return examine(
        *(cfg, args.checkpoint, args.images), out=args.json, num_images=args.num_images, data_root=args.data_root
    )
