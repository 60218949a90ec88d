"""`lbitcls infer`: name what is in images, with a checkpoint or an exported file."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, engine_arguments, option_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `lbitcls infer`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("checkpoint", help="checkpoint of the config's model, or an .onnx file that was exported of it")
    add("images", nargs="+", metavar="IMAGE", help="image files, and folders of them")
    add("--topk", type=int, default=1, metavar="K", help="classes to list for each image (default: 1)")
    add("--json", metavar="FILE", help="write the results to this file; -: to standard output")
    add("--batch-size", type=int, default=16, metavar="N", help="images that are predicted at once (default: 16)")
    add("--device", metavar="NAME", help="of a checkpoint's model: cpu, cuda, cuda:N or gpu:N")
    engine_arguments(parser)
    option_arguments(parser)


@verb("infer", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Name what is in images, with a checkpoint or an exported file."""
    cfg = read_config(args)
    from lbitcls.inference.image_files import infer_files

    return infer_files(
        cfg,
        args.checkpoint,
        args.images,
        topk=args.topk,
        out=args.json,
        device=args.device,
        engine=args.engine,
        threads=args.threads,
        batch_size=args.batch_size,
    )
