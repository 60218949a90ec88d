"""`lbitcls pull`: download a model from the Hugging Face Hub into a folder."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls pull`."""
    add = parser.add_argument
    add("name", metavar="OWNER/NAME", help="name of the model on the hub")
    add("files", nargs="*", metavar="FILE", help="files to pull (default: all that are plain data; never Python)")
    add("--revision", metavar="NAME", help="branch, tag or commit (default: the newest)")
    add("--out", metavar="DIR", help="new folder for the files (default: the model's name)")


@verb("pull", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Download a model from the Hugging Face Hub into a folder.

    Examples:
        lbitcls pull mara/flowers_4bit
        lbitcls pull mara/flowers_4bit model.onnx --revision v1 --out flowers
    """
    from lbitcls.workflows.pulling import pull_model

    return pull_model(args.name, args.out, revision=args.revision, files=args.files or None)
