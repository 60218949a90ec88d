"""`lbitcls export`: export a checkpoint for a target, with integer weights."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, field_arguments, given_fields, option_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls export`."""
    from lbitcls.settings.export import ExportOptions

    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("checkpoint", help="checkpoint of the config's model")
    add("--out", required=True, metavar="FILE", help="file to write, such as model.onnx; a folder for the target web")
    field_arguments(parser, ExportOptions)
    add("--details", action="store_true", help="print the whole table of the verification, not only its result")
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder to search for relative data paths")
    option_arguments(parser)


@verb("export", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Export a checkpoint for a target, with integer weights.

    Examples:
        lbitcls export flowers.py work_dirs/flowers/best_top-1.pth --out flowers.onnx --verify
        lbitcls export flowers.py work_dirs/flowers/best_top-1.pth --out page --target web
    """
    cfg = read_config(args)
    from lbitcls.settings.export import ExportOptions
    from lbitcls.workflows.exporting import export_checkpoint

    return export_checkpoint(
        cfg,
        args.checkpoint,
        args.out,
        given_fields(args, ExportOptions),
        data_root=args.data_root,
        details=args.details,
    )
