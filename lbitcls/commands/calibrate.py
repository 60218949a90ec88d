"""`lbitcls calibrate`: quantize a float checkpoint without training."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import TRAIN, option_arguments, read_config, short_forms, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls calibrate`."""
    add = parser.add_argument
    add("config", help="config file with a quant_transformer")
    add("checkpoint", help="checkpoint with float weights of the config's model")
    add("--out", required=True, metavar="FILE", help="quantized checkpoint to write")
    add("--num-images", type=int, default=200, metavar="N", help="images to calibrate on (default: 200)")
    add(
        "--method",
        default="mse",
        metavar="NAME",
        help="rule for ranges: mse (default), percentile, minmax, or own (the quantization method's rule)",
    )
    add(
        "--rounding",
        metavar="NAME",
        help="rounding of the weights: nearest, adaround or qdrop (default: calibration.reconstruct, else nearest)",
    )
    add("--split", metavar="NAME", help="part of data to calibrate on (default: calibration, else train)")
    add("--no-test", action="store_true", help="write the checkpoint without measuring accuracy")
    short_forms(parser, "batch-size", "workers")
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder to search for relative data paths")
    option_arguments(parser)


@verb("calibrate", add_options, TRAIN)
def run(args: argparse.Namespace) -> object:
    """Quantize a float checkpoint without training.

    Examples:
        lbitcls calibrate flowers.py work_dirs/flowers/best_top-1.pth --out quantized.pth
        lbitcls calibrate flowers.py float.pth --out quantized.pth --rounding adaround --num-images 500
    """
    cfg = read_config(args)
    from lbitcls.workflows.calibrating import calibrate_checkpoint

    return calibrate_checkpoint(
        cfg,
        args.checkpoint,
        args.out,
        num_images=args.num_images,
        method=None if args.method == "own" else args.method,
        split=args.split,
        test=not args.no_test,
        data_root=args.data_root,
        rounding=args.rounding,
    )
