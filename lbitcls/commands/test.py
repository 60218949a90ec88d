"""`lbitcls test`: test a checkpoint or an exported model."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import TRAIN, common_arguments, engine_arguments, model_config, short_forms, verb
from lbitcls.utils.errors import ConfigError

ORDER = "[CONFIG] [MODEL] [FOLDER]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls test`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="exported model or checkpoint (.pth), or its config and then the model")
    add(
        "folder",
        nargs="*",
        metavar="FOLDER",
        help="image folder with one folder per class to test on (default: the config's data.test); a config without a "
        "model tests the initial weights",
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
    add(
        "--predictions",
        metavar="FILE",
        help="write one row per image to this .csv or .jsonl file, with scores, or to this .npz file, with logits",
    )
    short_forms(parser, "batch-size", "workers")
    common_arguments(parser)


@verb("test", add_options, TRAIN)
def run(args: argparse.Namespace) -> object:
    """Test a checkpoint or an exported model.

    Examples:
        lbitcls test model.onnx photos
        lbitcls test flowers.py work_dirs/flowers/best_top-1.pth --metrics accuracy f1_score --predictions rows.csv
    """
    from lbitcls.inference.self_described import sort_arguments
    from lbitcls.workflows.testing import test_classifier

    given = sort_arguments([args.model, *args.folder], ORDER)
    if len(given.rest) > 1:
        raise ConfigError(f"test needs one folder at most; got {' '.join(given.rest)}. The order is: {ORDER}.")
    return test_classifier(
        model_config(args, given.config, given.model),
        given.model,
        folder=given.rest[0] if given.rest else None,
        metrics=args.metrics,
        out=args.out,
        predictions=args.predictions,
        data_root=args.data_root,
        launcher=args.launcher,
        engine=args.engine,
        threads=args.threads,
    )
