"""`lbitcls export`: write a checkpoint as an ONNX file with integer weights."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, option_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `lbitcls export`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("checkpoint", help="checkpoint of the config's model")
    add("--out", required=True, metavar="FILE", help="ONNX file to write")
    add("--verify", action="store_true", help="compare the file with the model in the engines for its target")
    add("--num-images", type=int, default=200, metavar="N", help="images to compare on (default: 200)")
    add("--opset", type=int, default=21, metavar="N", help="version of ONNX's operators, 17 to 21 (default)")
    add("--part", default="model", metavar="NAME", help="model (default), or backbone for its features")
    add("--pack", action="store_true", help="store weights of 4 bits or fewer in 4 bits")
    add("--residual-bits", type=int, metavar="N", help="8: carry skip connections in 8 bits (default: float)")
    add("--target", default="cpu", metavar="NAME", help="cpu (default), tensorrt, or a target of your own")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder below which relative data paths are found")
    option_arguments(parser)


@verb("export", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Write a checkpoint as an ONNX file with integer weights."""
    cfg = read_config(args)
    from lbitcls.workflows.exporting import export_checkpoint

    return export_checkpoint(
        cfg,
        args.checkpoint,
        args.out,
        verify=args.verify,
        num_images=args.num_images,
        opset=args.opset,
        part=args.part,
        pack=args.pack,
        residual_bits=args.residual_bits,
        target=args.target,
        data_root=args.data_root,
    )
