"""`lbitcls compare`: compare a quantized model with the float model."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import LOOK, safe_argument, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls compare`."""
    add = parser.add_argument
    add("images", help="image, or folder of images")
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="WORK_DIR of a run; or FLOAT_CONFIG INT_CONFIG FLOAT_CHECKPOINT INT_CHECKPOINT [DEVICE [PAGE]]; or for "
        "one model CONFIG CHECKPOINT",
    )
    add("--save-path", metavar="FILE", help="HTML page to write (default: model_analysis.html, in WORK_DIR if given)")
    add("--num-images", type=int, default=64, metavar="N", help="maximum number of images from a folder (default: 64)")
    add("--float-only", action="store_true", help="analyze one float model")
    safe_argument(parser)
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or gpu:N")


@verb("compare", add_options, LOOK)
def run(args: argparse.Namespace) -> object:
    """Compare a quantized model with the float model.

    Examples:
        lbitcls compare photos float.py quantized.py float.pth quantized.pth
        lbitcls compare photos quantized.py quantized.pth --save-path report.html
    """
    from lbitcls.workflows.comparing import compare_checkpoints

    return compare_checkpoints(
        args.images,
        args.files,
        out=args.save_path,
        num_images=args.num_images,
        float_only=args.float_only,
        device=args.device,
    )
