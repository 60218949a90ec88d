"""`lbitcls visualize`: draw a batch, predictions, errors or the confusion matrix."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import LOOK, engine_arguments, option_arguments, read_config, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls visualize`."""
    add = parser.add_argument
    add("kind", metavar="KIND", help="figure to draw: batch, predictions, errors or confusion")
    add("config", help="config file: .py, .yaml or .json")
    add("checkpoint", nargs="?", help="checkpoint or exported model (default: the work directory's best checkpoint)")
    add("--out", metavar="FILE", help="figure to write: .png, .svg, .pdf (default: in the work directory)")
    add("--num-images", type=int, metavar="N", help="maximum number of images in the figure (default: 24)")
    add("--rows", type=int, metavar="N", help="rows of the grid")
    add("--cols", type=int, metavar="N", help="images per row")
    add("--split", metavar="NAME", help="part of data to draw (default: train for a batch, else val)")
    add("--tensorboard", action="store_true", help="write the figure for TensorBoard too")
    add("--work-dir", metavar="DIR", help="work directory of the run")
    engine_arguments(parser)
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or gpu:N")
    add("--data-root", metavar="DIR", help="folder to search for relative data paths")
    option_arguments(parser)


@verb("visualize", add_options, LOOK)
def run(args: argparse.Namespace) -> object:
    """Draw a batch, predictions, errors or the confusion matrix.

    Examples:
        lbitcls visualize batch flowers.py
        lbitcls visualize errors flowers.py work_dirs/flowers/best_top-1.pth --out errors.png
    """
    cfg = read_config(args)
    if args.work_dir is not None:
        cfg.merge_from_dict({"work_dir": args.work_dir})
    from lbitcls.workflows.visualizing import default_target, visualize

    return visualize(
        args.kind,
        cfg,
        args.checkpoint,
        out=args.out or default_target(args.kind, cfg),
        num_images=args.num_images,
        rows=args.rows,
        cols=args.cols,
        split=args.split,
        data_root=args.data_root,
        engine=args.engine,
        threads=args.threads,
        tensorboard=args.tensorboard,
    )
