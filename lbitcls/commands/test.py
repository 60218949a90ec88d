"""`lbitcls test`: test a checkpoint or an exported model."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import TRAIN, common_arguments, engine_arguments, read_config, verb
from lbitcls.utils.errors import ConfigError

ORDER = "[CONFIG] [MODEL] [FOLDER]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls test`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="exported model (.onnx) or checkpoint (.pth), or its config and then the model")
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
    add("--predictions", metavar="FILE", help="write one row per image to this .csv or .jsonl file")
    common_arguments(parser)


@verb("test", add_options, TRAIN)
def run(args: argparse.Namespace) -> object:
    """Test a checkpoint or an exported model."""
    from lbitcls.inference.self_described import recorded_with, sort_arguments
    from lbitcls.workflows.testing import test_classifier

    given = sort_arguments([args.model, *args.folder], ORDER)
    if len(given.rest) > 1:
        raise ConfigError(f"test needs one folder at most; got {' '.join(given.rest)}. The order is: {ORDER}.")
    args.config = given.config
    recorded = given.config is None and given.model is not None
    cfg = recorded_with(str(given.model), args.options, args.device) if recorded else read_config(args)
    return test_classifier(
        cfg,
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
