"""The command line: `lbitcls VERB …`; `tools/*.py` are shims over it.

A verb is a function decorated with `@verb(name, arguments, purpose)`, `arguments` being the function that adds its
options to a parser. Nothing heavy is imported before a verb runs, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbitcls.cli_arguments import (
    analyze_arguments,
    benchmark_arguments,
    calibrate_arguments,
    compare_arguments,
    convert_arguments,
    export_arguments,
    infer_arguments,
    init_arguments,
    plan_arguments,
    test_arguments,
    train_arguments,
    visualize_arguments,
)
from lbitcls.utils.errors import ConfigError, LbitclsError, TrainingError
from lbitcls.utils.failures import explain
from lbitcls.utils.safe import safe_mode
from lbitcls.version import __version__

if TYPE_CHECKING:
    from lbitcls.utils.config import Config

Run = Callable[[argparse.Namespace], object]

PURPOSES = START, TRAIN, SHIP, LOOK = "prepare", "train and test", "export and use", "look at runs and predictions"
"""What verbs are for, in the order in which the help lists them."""


@dataclass(frozen=True)
class Verb:
    """A command: its one-line help, what it is for, its options, what it does."""

    help: str
    purpose: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Run


VERBS: dict[str, Verb] = {}


def verb(name: str, add_arguments: Callable[[argparse.ArgumentParser], None], purpose: str) -> Callable[[Run], Run]:
    """Register the decorated function as `lbitcls name`; the first line of its docstring is its help."""

    def register(run: Run) -> Run:
        VERBS[name] = Verb((run.__doc__ or "").strip().splitlines()[0], purpose, add_arguments, run)
        return run

    return register


@verb("train", train_arguments, TRAIN)
def train(args: argparse.Namespace) -> object:
    """Train the classifier of a config, or go on with a run."""
    if args.gpus is not None and args.gpus > 1 and args.launcher == "none":
        raise ConfigError(
            f"--gpus {args.gpus}: one process trains on one GPU; start ./tools/dist_train.sh {args.config} {args.gpus}."
        )
    if args.gpus is not None and args.gpus < 1:
        raise ConfigError(f"--gpus is a number from 1; got {args.gpus}. To train on the CPU use --cpu-only.")
    cfg = _read_config(args)
    given = {
        "work_dir": args.work_dir,
        "resume_from": args.resume_from,
        "load_from": args.load_from,
        "seed": args.seed,
        "gpu_ids": args.gpu_ids,
        "deterministic": args.deterministic or None,
        "sycbn": args.sycbn or None,
        "cpu_only": args.cpu_only or None,
    }
    cfg.merge_from_dict({name: value for name, value in given.items() if value is not None})
    from lbitcls.apis.train import train_classifier

    return train_classifier(
        cfg,
        resume=args.resume,
        validate=not args.no_validate,
        data_root=args.data_root,
        launcher=args.launcher,
    )


@verb("test", test_arguments, TRAIN)
def test(args: argparse.Namespace) -> object:
    """Test a checkpoint or an exported file."""
    cfg = _read_config(args)
    from lbitcls.apis.test import test_classifier

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


@verb("plan", plan_arguments, START)
def plan(args: argparse.Namespace) -> object:
    """Show what becomes of each layer, and what it costs."""
    cfg = _read_config(args)
    from lbitcls.apis.plan import show_plan

    return show_plan(cfg, args.shape)


@verb("calibrate", calibrate_arguments, TRAIN)
def calibrate(args: argparse.Namespace) -> object:
    """Quantize a float checkpoint without training."""
    cfg = _read_config(args)
    from lbitcls.apis.calibrate import calibrate_checkpoint

    return calibrate_checkpoint(
        cfg,
        args.checkpoint,
        args.out,
        num_images=args.num_images,
        method=None if args.method == "own" else args.method,
        split=args.split,
        test=not args.no_test,
        data_root=args.data_root,
    )


@verb("export", export_arguments, SHIP)
def export(args: argparse.Namespace) -> object:
    """Write a checkpoint as an ONNX file with integer weights."""
    cfg = _read_config(args)
    from lbitcls.apis.export import export_checkpoint

    return export_checkpoint(
        cfg,
        args.checkpoint,
        args.out,
        verify=args.verify,
        num_images=args.num_images,
        opset=args.opset,
        part=args.part,
        pack=args.pack,
        residual_bits=args.residual_bits,
        target=args.target,
        data_root=args.data_root,
    )


@verb("infer", infer_arguments, SHIP)
def infer(args: argparse.Namespace) -> object:
    """Name what is in images, with a checkpoint or an exported file."""
    cfg = _read_config(args)
    from lbitcls.apis.infer import infer_files

    return infer_files(
        cfg,
        args.checkpoint,
        args.images,
        topk=args.topk,
        out=args.json,
        device=args.device,
        engine=args.engine,
        threads=args.threads,
        batch_size=args.batch_size,
    )


@verb("benchmark", benchmark_arguments, SHIP)
def benchmark(args: argparse.Namespace) -> object:
    """Time exported files beside each other."""
    from lbitcls.apis.benchmark import benchmark_models

    return benchmark_models(
        args.models,
        engine=args.engine or "openvino",
        threads=args.threads,
        batches=args.batch,
        precision=args.precision,
        bf16=args.bf16,
        repeats=args.repeats,
        out=args.json,
    )


@verb("visualize", visualize_arguments, LOOK)
def visualize(args: argparse.Namespace) -> object:
    """Draw a batch, predictions, errors."""
    cfg = _read_config(args)
    if args.work_dir is not None:
        cfg.merge_from_dict({"work_dir": args.work_dir})
    from lbitcls.apis.visualize import default_target, visualize

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


@verb("compare", compare_arguments, LOOK)
def compare(args: argparse.Namespace) -> object:
    """Compare a quantized model with its float form."""
    from lbitcls.apis.compare import compare_checkpoints

    return compare_checkpoints(
        args.images,
        args.files,
        out=args.save_path,
        num_images=args.num_images,
        float_only=args.float_only,
        device=args.device,
    )


@verb("analyze", analyze_arguments, LOOK)
def analyze(args: argparse.Namespace) -> object:
    """Draw the curves of runs, and time them."""
    from lbitcls.apis.analyze import analyze_logs

    return analyze_logs(args.runs, args.keys, axis=args.x, names=args.names, out=args.out)


@verb("init", init_arguments, START)
def init(args: argparse.Namespace) -> object:
    """Write a config for a folder of images."""
    from lbitcls.apis.init import init_config

    return init_config(
        args.folder,
        backbone=args.backbone,
        quantize=args.quantize,
        pretrained=args.pretrained,
        out=args.out,
        val=args.val,
        workers=args.workers,
        time_limit=args.time_limit,
    )


@verb("convert", convert_arguments, START)
def convert(args: argparse.Namespace) -> object:
    """Write published weights as a checkpoint."""
    from lbitcls.apis.convert import convert_checkpoint

    model = convert_checkpoint(args.source, args.target, args.format)
    print(f"wrote {args.target}; its model is\n{model}")
    return model


def _read_config(args: argparse.Namespace) -> Config:
    """The config file with `--options` and `--device` merged in."""
    from lbitcls.utils.config import Config, parse_option

    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(dict(parse_option(option) for option in args.options))
    if getattr(args, "device", None) is not None:
        cfg.merge_from_dict({"device": args.device})
    return cfg


def main(argv: Sequence[str] | None = None, only: str | None = None) -> int:
    """Run a command; the exit code: 0, 2 for a mistake in config or arguments, 1 for other errors, 128 + a signal.

    Args:
        argv: arguments, `sys.argv[1:]` by default.
        only: the verb, where the program is one (`tools/train.py`).
    """
    args = _parse(sys.argv[1:] if argv is None else argv, only)
    try:
        with safe_mode(getattr(args, "safe", False)):
            args.run(args)
    except LbitclsError as error:
        _print_error(error)
        return error.exit_code
    except (OSError, MemoryError, RuntimeError) as error:
        if (told := explain(error)) is not None:
            _print_error(told)
        elif isinstance(error, OSError):
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            print(f"{type(error).__name__}: {where}", file=sys.stderr)
        elif _peer_is_gone(error):
            print(f"process {os.environ.get('RANK')}: another process ended; its message says why.", file=sys.stderr)
        else:
            raise
        return 1
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str], only: str | None) -> argparse.Namespace:
    """The arguments; those of a verb may stand before, between and after its options."""
    if only is not None:
        return _with_verb(argparse.ArgumentParser(description=VERBS[only].help), only).parse_intermixed_args(argv)
    if argv and argv[0] in VERBS:
        parser = argparse.ArgumentParser(f"lbitcls {argv[0]}", description=VERBS[argv[0]].help)
        return _with_verb(parser, argv[0]).parse_intermixed_args(argv[1:])
    about = "Image classifiers of 2 to 8 bits, from one config file."
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lbitcls", description=about, epilog=_listed_verbs(), formatter_class=plain)
    parser.add_argument("--version", action="version", version=f"lbitcls {__version__}")
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, help="one of those below; lbitcls VERB --help says more"
    )
    for name, entry in VERBS.items():
        _with_verb(verbs.add_parser(name, description=entry.help), name)
    return parser.parse_args(argv)


def _listed_verbs() -> str:
    """The verbs with their help, by what they are for."""
    lines = []
    for purpose in PURPOSES:
        lines += ["", f"{purpose}:"]
        lines += [f"  {name:<11} {entry.help}" for name, entry in VERBS.items() if entry.purpose == purpose]
    return "\n".join(lines[1:])


def _with_verb(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    VERBS[name].add_arguments(parser)
    parser.set_defaults(run=VERBS[name].run)
    return parser


def _print_error(error: LbitclsError) -> None:
    """One message for all processes where all meet the same error, else with the process's number."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    if rank == "0":
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    elif not isinstance(error, (ConfigError, TrainingError)):
        print(f"process {rank}: {type(error).__name__}: {error}", file=sys.stderr)


def _peer_is_gone(error: BaseException) -> bool:
    """Whether a process group broke because another process ended."""
    if "torch" not in sys.modules:
        return False
    from lbitcls.utils.dist import lost_peer

    return lost_peer(error)


if __name__ == "__main__":
    sys.exit(main())
