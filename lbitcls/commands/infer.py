"""`lbitcls infer`: classify images with a checkpoint or an exported model."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, engine_arguments, option_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls infer`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("checkpoint", help="checkpoint of the config's model, or an .onnx file exported from it")
    add("images", nargs="+", metavar="IMAGE", help="image files, or folders of images")
    add("--topk", type=int, default=1, metavar="K", help="number of classes to list per image (default: 1)")
    add("--json", metavar="FILE", help="write the results to this JSON file; -: to standard output")
    add("--out", metavar="DIR", help="new folder for labeled images and a CSV file of the predictions")
    add("--batch-size", type=int, default=16, metavar="N", help="images per batch (default: 16)")
    add("--device", metavar="NAME", help="device for a checkpoint: cpu, cuda, cuda:N or gpu:N")
    engine_arguments(parser)
    option_arguments(parser)


@verb("infer", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Classify images with a checkpoint or an exported model."""
    cfg = read_config(args)
    from lbitcls.inference.image_files import infer_files

    return infer_files(
        cfg,
        args.checkpoint,
        args.images,
        topk=args.topk,
        out=args.json,
        folder=args.out,
        device=args.device,
        engine=args.engine,
        threads=args.threads,
        batch_size=args.batch_size,
    )
