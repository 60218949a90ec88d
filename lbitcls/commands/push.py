"""`lbitcls push`: push a run or its files to the Hugging Face Hub, with a model card."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls push`."""
    add = parser.add_argument
    add("paths", nargs="+", metavar="RUN", help="work directory, or checkpoints and exported models")
    add("name", metavar="OWNER/NAME", help="name of the model on the hub; it is created if it does not exist")
    add("--private", action="store_true", help="create the model as a private one")
    add("--license", metavar="NAME", help="license of the weights, as the hub names it, such as apache-2.0")
    add("--out", metavar="DIR", help="write the files to this new folder, and push nothing")


@verb("push", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Push a run or its files to the Hugging Face Hub, with a model card.

    Examples:
        lbitcls push work_dirs/flowers mara/flowers_4bit --license apache-2.0
        lbitcls push flowers.safetensors flowers.onnx mara/flowers_4bit --out card
    """
    from lbitcls.workflows.pushing import push_model

    return push_model(args.paths, args.name, private=args.private, license=args.license, out=args.out)
