"""`lbitcls verify`: check exported models on images, and renew their certificates."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, model_config, option_arguments, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls verify`."""
    add = parser.add_argument
    add("models", nargs="+", metavar="EXPORTED", help="exported models of one checkpoint: files, or web folders")
    add("--images", nargs="+", required=True, metavar="IMAGE", help="image files, or folders of images")
    add("--checkpoint", metavar="FILE", help="checkpoint to compare with (default: the first file in its first engine)")
    add("--config", metavar="FILE", help="config of the checkpoint (default: the one that it records)")
    add("--num-images", type=int, default=200, metavar="N", help="number of images, evenly spread (default: 200)")
    add("--engine", nargs="+", metavar="NAME", help="engines to run (default: those of each file's target)")
    add("--threads", type=int, metavar="N", help="number of threads of each engine (default: its own choice)")
    add("--json", metavar="FILE", help="write the certificates to this file")
    option_arguments(parser)
    parser.set_defaults(device=None)


@verb("verify", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Check exported models on images, and renew their certificates.

    Examples:
        lbitcls verify model.onnx model.tflite --images photos --checkpoint work_dirs/flowers/best_top-1.pth
        lbitcls verify model.onnx --images photos --engine openvino onnxruntime --json certificate.json
    """
    from lbitcls.workflows.verifying import verify_files

    return verify_files(
        args.models,
        args.images,
        cfg=None if args.checkpoint is None else model_config(args, args.config, args.checkpoint),
        checkpoint=args.checkpoint,
        num_images=args.num_images,
        engines=args.engine,
        threads=args.threads,
        out=args.json,
    )
