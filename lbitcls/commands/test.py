"""`lbitcls test`: test a checkpoint or an exported model."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import TRAIN, common_arguments, engine_arguments, read_config, short_forms, verb


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
    short_forms(parser, "batch-size", "workers")
    common_arguments(parser)


@verb("test", add_options, TRAIN)
def run(args: argparse.Namespace) -> object:
    """Test a checkpoint or an exported model.

    Examples:
        lbitcls test flowers.py work_dirs/flowers/best_top-1.pth
        lbitcls test flowers.py model.onnx --metrics accuracy f1_score --predictions rows.csv
    """
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
