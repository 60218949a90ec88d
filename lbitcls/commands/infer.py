"""`lbitcls infer`: classify images with a checkpoint or an exported model."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, engine_arguments, model_config, option_arguments, verb
from lbitcls.utils.errors import ConfigError

ORDER = "[CONFIG] MODEL IMAGE…"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls infer`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="exported model or checkpoint (.pth), or its config and then the model")
    add("images", nargs="+", metavar="IMAGE", help="image files, or folders of images")
    add("--topk", type=int, default=1, metavar="K", help="number of classes to list per image (default: 1)")
    add("--json", metavar="FILE", help="write the results to this JSON file; -: to standard output")
    add("--out", metavar="DIR", help="new folder for labeled images and a CSV file of the predictions")
    add("--batch-size", type=int, default=16, metavar="N", help="images per batch (default: 16)")
    add("--device", metavar="NAME", help="device for a checkpoint: auto, cpu, cuda, cuda:N or gpu:N")
    engine_arguments(parser)
    option_arguments(parser)


@verb("infer", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Classify images with a checkpoint or an exported model.

    Examples:
        lbitcls infer model.onnx photo.jpg --topk 3
        lbitcls infer work_dirs/flowers/best_top-1.pth photos --json found.json
    """
    from lbitcls.inference.image_files import infer_files
    from lbitcls.inference.self_described import sort_arguments

    given = sort_arguments([args.model, *args.images], ORDER)
    if given.model is None or not given.rest:
        raise ConfigError(f"no image is given, only {' and '.join([args.model, *args.images])}; the order is: {ORDER}.")
    return infer_files(
        model_config(args, given.config, given.model),
        given.model,
        given.rest,
        topk=args.topk,
        out=args.json,
        folder=args.out,
        device=args.device,
        engine=args.engine,
        threads=args.threads,
        batch_size=args.batch_size,
    )
