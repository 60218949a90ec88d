"""`lbitcls benchmark`: time exported files beside each other."""

from __future__ import annotations

import argparse

from lbitcls.commands.base import SHIP, engine_arguments, verb


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `lbitcls benchmark`."""
    add = parser.add_argument
    add("models", nargs="+", metavar="FILE", help="ONNX files; ratios are to the float one, or else to the last")
    engine_arguments(parser, threads=2)
    add("--batch", type=int, nargs="+", default=[1, 16], metavar="N", help="batch sizes (default: 1 16)")
    add("--precision", default="f32", metavar="NAME", help="of what is not computed in integers: f32 (default) or bf16")
    add("--bf16", action="store_true", help="time the float files in bf16 too, where the CPU has it")
    add("--repeats", type=int, default=30, metavar="N", help="turns at each batch size (default: 30)")
    add("--json", metavar="FILE", help="write the results to this file")


@verb("benchmark", add_options, SHIP)
def run(args: argparse.Namespace) -> object:
    """Time exported files beside each other."""
    from lbitcls.workflows.benchmarking import benchmark_models

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
