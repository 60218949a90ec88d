"""`lbitcls test`: test a checkpoint or an exported model."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import TRAIN, common_arguments, engine_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls test`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add(
        "checkpoint",
        nargs="?",
        help="checkpoint of the config's model, or an .onnx file exported from it "
        "(default: none; test the model with its initial weights)",
    )
    engine_arguments(parser)
    add(
        "--metrics",
        nargs="+",
        default=["accuracy"],
        metavar="NAME",
        help="metrics to report: accuracy precision recall f1_score confusion",
    )
    add("--out", metavar="FILE", help="write the results to this JSON file")
    add("--predictions", metavar="FILE", help="write one row per image to this .csv or .jsonl file")
    common_arguments(parser)


@verb("test", add_options, TRAIN)
def run(args: argparse.Namespace) -> object:
    """Test a checkpoint or an exported model."""
    cfg = read_config(args)
    from lbitcls.workflows.testing import test_classifier

    return test_classifier(
        cfg,
        args.checkpoint,
        metrics=args.metrics,
        out=args.out,
        predictions=args.predictions,
        data_root=args.data_root,
        launcher=args.launcher,
        engine=args.engine,
        threads=args.threads,
    )
