"""`lbitcls train`: train the classifier of a config, or resume a run."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from lbitcls.commands.base import TRAIN, common_arguments, read_config, short_forms, verb
from lbitcls.utils.durations import read_duration
from lbitcls.utils.errors import ConfigError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls train`."""
    add = parser.add_argument
    add("config", help="config file: .py, .yaml or .json")
    add("--work-dir", metavar="DIR", help="work directory (default: work_dirs/ and the config's name)")
    add("--name", metavar="NAME", help="name of the run: its folder, beside the default work directory")
    short_forms(parser, "epochs", "batch-size", "lr", "workers")
    add("--resume", action="store_true", help="resume from the newest checkpoint in the work directory, if any")
    add("--resume-from", metavar="FILE", help="resume from this checkpoint")
    add("--load-from", metavar="FILE", help="initialize from the weights in this file")
    add("--no-validate", action="store_true", help="train without validation")
    add("--seed", type=int, metavar="N", help="random seed (default: drawn, and logged)")
    add("--deterministic", action="store_true", help="use only kernels whose results are bitwise reproducible")
    add("--gpus", type=int, metavar="N", help="number of GPUs; more than one needs tools/dist_train.sh")
    add("--gpu-ids", type=int, nargs="+", metavar="N", help="indices of the GPUs to use")
    add("--sycbn", action="store_true", help="compute BatchNorm statistics over all GPUs")
    add("--cpu-only", action="store_true", help="train on the CPU")
    add(
        "--time-limit",
        metavar="TIME",
        help="save and stop in time before the command has run so long: 90m, 5h30m, 1-00:00:00, or minutes",
    )
    add("--verbose", action="store_true", help="show every line of the log file")
    _range_test_options(parser)
    common_arguments(parser)


def _range_test_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--find-lr", action="store_true", help="do not train, but suggest a learning rate: a range test of 100 steps")
    add("--find-lr-epoch", type=int, metavar="N", help="epoch (from 0) whose frozen parts and quantizers apply")
    add("--find-lr-steps", type=int, default=100, metavar="N", help="steps of the range test (default: 100)")
    add(
        "--find-lr-range",
        type=float,
        nargs=2,
        default=(1e-7, 10.0),
        metavar=("MIN", "MAX"),
        help="learning rates of the range test (default: 1e-07 10)",
    )


@verb("train", add_options, TRAIN)
def run(args: argparse.Namespace) -> object:
    """Train the classifier of a config, or resume a run.

    Examples:
        lbitcls train configs/quickstart/digits_lsq_4w4f.py
        lbitcls train flowers.py --epochs 20 --lr 0.01 --name lower_rate
    """
    deadline = None
    if args.time_limit is not None:
        deadline = time.monotonic() + read_duration(args.time_limit, "--time-limit")
    if args.gpus is not None and args.gpus > 1 and args.launcher == "none":
        raise ConfigError(
            f"--gpus {args.gpus}: one process trains on one GPU; start ./tools/dist_train.sh {args.config} {args.gpus}."
        )
    if args.gpus is not None and args.gpus < 1:
        raise ConfigError(f"--gpus must be an integer ≥ 1; got {args.gpus}. To train on the CPU use --cpu-only.")
    cfg = read_config(args)
    given = {
        "work_dir": args.work_dir,
        "resume_from": args.resume_from,
        "load_from": args.load_from,
        "seed": args.seed,
        "gpu_ids": args.gpu_ids,
        "device": _requested_gpu(args),
        "deterministic": args.deterministic or None,
        "sycbn": args.sycbn or None,
        "cpu_only": args.cpu_only or None,
    }
    cfg.merge_from_dict({name: value for name, value in given.items() if value is not None})
    if args.name is not None:
        from lbitcls.settings.sections import read_settings

        cfg.merge_from_dict({"work_dir": _named(read_settings(cfg).run_folder, args.name, args.work_dir)})
    if args.find_lr and deadline is not None:
        raise ConfigError("--time-limit is for training; a range test (--find-lr) saves nothing. Remove one.")
    if args.find_lr:
        from lbitcls.workflows.finding_lr import find_learning_rate

        least, most = args.find_lr_range
        return find_learning_rate(
            cfg,
            epoch=args.find_lr_epoch,
            least=least,
            most=most,
            steps=args.find_lr_steps,
            resume=args.resume,
            data_root=args.data_root,
            launcher=args.launcher,
            verbose=args.verbose,
        )
    from lbitcls.workflows.training import train_classifier

    return train_classifier(
        cfg,
        resume=args.resume,
        validate=not args.no_validate,
        data_root=args.data_root,
        launcher=args.launcher,
        verbose=args.verbose,
        time_limit=None if deadline is None else deadline - time.monotonic(),
    )


def _named(run_folder: Path, name: str, work_dir: str | None) -> str:
    """Return the work directory `name` beside the config's."""
    if work_dir is not None:
        raise ConfigError(f"--name {name} and --work-dir {work_dir} both set the work directory; give one of them.")
    if name != Path(name).name or name in ("", ".."):
        raise ConfigError(f"--name must be the name of a folder; got '{name}'. For a path use --work-dir.")
    return str(run_folder.with_name(name))


def _requested_gpu(args: argparse.Namespace) -> str | None:
    """Return the GPU that `--gpu-ids` names: as a flag, unlike in an older config, it must exist."""
    alone = args.gpu_ids is not None and len(args.gpu_ids) == 1 and args.launcher == "none"
    return f"cuda:{args.gpu_ids[0]}" if alone and args.device is None and not args.cpu_only else None
