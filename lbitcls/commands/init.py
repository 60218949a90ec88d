"""`lbitcls init`: write a config for a folder of images."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import START, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls init`."""
    add = parser.add_argument
    add("folder", help="folder with a subfolder per class, or with train/ and val/ that have such subfolders")
    add("--backbone", default="mobilenet_v2", metavar="NAME", help="mobilenet_v2 (default), resnet18, squeezenet1_1, …")
    add(
        "--quantize",
        metavar="METHOD-NwMf",
        help="quantize after training in float; lsq-4w4f: LSQ with 4 bits for weights and 4 for inputs; other methods: "
        "lsqplus, dsq, dorefa, pact, apot, uq, ewgs, n2uq, qat; int8: qat-8w8f; int4: lsq-4w4f",
    )
    add(
        "--pretrained",
        metavar="FILE",
        help="weights to initialize from: a file, torchvision://NAME, or none (default: torchvision's)",
    )
    add("--out", metavar="FILE", help="config to write, a .py file (default: named after the folder)")
    add(
        "--val", type=float, default=0.2, metavar="PART", help="validation fraction, if there is no val/ (default: 0.2)"
    )
    add("--workers", type=int, metavar="N", help="number of threads that read images (default: one per core)")
    add(
        "--time-limit",
        type=float,
        default=120,
        metavar="S",
        help="seconds after which no more images are read (default: 120)",
    )


@verb("init", add_options, START)
def run(args: argparse.Namespace) -> object:
    """Write a config for a folder of images.

    Examples:
        lbitcls init flowers
        lbitcls init flowers --backbone resnet18 --quantize lsq-4w4f --out flowers_4bit.py
    """
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
