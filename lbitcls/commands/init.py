"""`lbitcls init`: write a config for a folder of images."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `lbitcls init`."""
    add = parser.add_argument
    add("folder", help="folder of images: a folder for each class, or train/ and val/ with such folders")
    add("--backbone", default="mobilenet_v2", metavar="NAME", help="mobilenet_v2 (default), resnet18, squeezenet1_1, …")
    add("--quantize", metavar="NAME", help="lsq-4w4f or qat-8w8f: train in float, then quantized")
    add("--pretrained", metavar="FILE", help="weights, torchvision://NAME, or none (default: torchvision's)")
    add("--out", metavar="FILE", help="config to write (default: the folder's name, .py)")
    add("--val", type=float, default=0.2, metavar="PART", help="of the images, where there is no val/ (default: 0.2)")
    add("--workers", type=int, metavar="N", help="threads that read the images (default: one for each core)")
    add("--time-limit", type=float, default=120, metavar="S", help="seconds to read images for (default: 120)")


@verb("init", add_options, START)
def run(args: argparse.Namespace) -> object:
    """Write a config for a folder of images."""
    from lbitcls.starter import init_config

    return init_config(
        args.folder,
        backbone=args.backbone,
        quantize=args.quantize,
        pretrained=args.pretrained,
        out=args.out,
        val=args.val,
        workers=args.workers,
        time_limit=args.time_limit,
    )
