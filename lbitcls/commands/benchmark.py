"""`lbitcls benchmark`: time exported models side by side."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, engine_arguments, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lbitcls benchmark`."""
    add = parser.add_argument
    add("models", nargs="+", metavar="FILE", help="exported files; ratios are to the float one, or else to the last")
    engine_arguments(parser, threads=2)
    add("--batch", type=int, nargs="+", default=[1, 16], metavar="N", help="batch sizes (default: 1 16)")
    add("--precision", default="f32", metavar="NAME", help="type of non-integer operations: f32 (default) or bf16")
    add("--bf16", action="store_true", help="time the float files in bf16 too, if the CPU supports it")
    add("--repeats", type=int, default=30, metavar="N", help="turns per file and batch size (default: 30)")
    add("--json", metavar="FILE", help="write the results to this JSON file")


@verb("benchmark", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Time exported models side by side.

    Examples:
        lbitcls benchmark model.onnx float.onnx
        lbitcls benchmark model.onnx --batch 1 64 --threads 4 --json times.json
    """
    from lbitcls.workflows.benchmarking import benchmark_models

    return benchmark_models(
        args.models,
        engine=args.engine,
        threads=args.threads,
        batches=args.batch,
        precision=args.precision,
        bf16=args.bf16,
        repeats=args.repeats,
        out=args.json,
    )
