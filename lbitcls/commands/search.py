"""`lbitcls search`: choose the bits of each layer under a budget."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, option_arguments, read_config, short_forms, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls search`."""
    add = parser.add_argument
    add("config", help="config file with a quant_transformer, whose bits are replaced")
    add("checkpoint", help="checkpoint with float weights of the config's model")
    add(
        "--budget",
        required=True,
        metavar="LIMIT",
        help="size=3bit (mean), size=0.5x, size=200KiB, bops=0.5x or bops=1G",
    )
    add("--out", required=True, metavar="FILE", help="config to write; a .png and a .json of its name are written too")
    add("--bits", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8], metavar="N", help="bits to choose from (2 to 8)")
    add("--keep", nargs="*", metavar="LAYER", help="layers that keep their bits (default: those of special_layers)")
    add("--weights-only", action="store_true", help="inputs keep their bits (default: those of the layer's weight)")
    add("--measure", default="kl", metavar="NAME", help="kl (default): each layer quantized alone; fisher: an estimate")
    add("--num-images", type=int, default=128, metavar="N", help="images to measure on (default: 128)")
    add("--split", metavar="NAME", help="part of data with the images (default: calibration, else train)")
    add("--target", metavar="NAME", help="deployment target whose rules bound the choice")
    short_forms(parser, "batch-size", "workers")
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder to search for relative data paths")
    option_arguments(parser)


@verb("search", add_options, START)
def run(args: argparse.Namespace) -> object:
    """Choose the bits of each layer under a budget.

    Examples:
        lbitcls search flowers.py work_dirs/flowers/best_top-1.pth --budget size=3bit --out mixed.py
        lbitcls search flowers.py float.pth --budget bops=0.5x --bits 2 4 8 --target tensorrt --out mixed.py
    """
    cfg = read_config(args)
    from lbitcls.workflows.searching import search_bits

    return search_bits(
        cfg,
        args.checkpoint,
        args.out,
        budget=args.budget,
        bits=args.bits,
        keep=args.keep,
        weights_only=args.weights_only,
        measure=args.measure,
        num_images=args.num_images,
        split=args.split,
        target=args.target,
        data_root=args.data_root,
    )
