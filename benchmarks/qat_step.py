"""Training step of quantized models against the float model: time and memory, as ratios measured in one run.

    python benchmarks/qat_step.py [--model resnet20] [--methods LSQ] [--bits 4] [--threads 1] [--device cpu] [--rss]
                                  [--keep-memory]
                                  [--kernels plain fused integer] [--gradients float32 bf16 int8] [--channels-last]
                                  [--variants float fused …] [--markdown] [--json F] [--own-loop]

Variants are named `KIND[-bf16|-int8][-autocast][-channels_last][-compiled]`: `float`, or the quantized model with
`plain`, `fused` or `integer` kernels; gradients of integer kernels in bfloat16 or 8 bits; bfloat16 autocast; memory
format; `torch.compile`. `--own-loop` measures a user's own loop that selects no kernels, against the float step only.

Variants are built in one process and take turns, so that a busy machine slows all of them alike; each number is the
median ratio of a variant's step to the float step of the same turn: eager, compiled, and compiled under autocast.
Bounds: `bound` is the time of the convolutions alone, on integers in the forward pass and on floats in the backward
pass (`bound-bf16`: in bfloat16 where that is faster); `pass` is one pass over memory for each quantized input (two
arrays read, one written), which comes on top of a float step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from step_bounds import pass_seconds, product_seconds
from steps import GRADIENTS, KERNELS, MODELS, Variant, parse_kind, peak_bytes, seconds

from lbitcls.quant.kernels import select_kernels
from lbitcls.quant.kernels.selection import can_compile, restored_kernels
from lbitcls.utils.errors import DependencyError
from lbitcls.utils.memory import keep_freed_memory

EAGER, COMPILED, AUTOCAST = "float", "float-compiled", "float-autocast-channels_last-compiled"
BASES = {"eager": EAGER, "compiled": COMPILED, "autocast": AUTOCAST}
HEADS = {
    "variant": "variant",
    "milliseconds": "ms",
    **{f"to_{name}": f"to {name}" for name in BASES},
    "saved_activations": "saved",
    "peak_mib": "peak, MiB",
    "peak": "peak",
}
Row = dict[str, Any]


def default_kernels(device: str) -> list[str]:
    """Return the kinds of kernels that run on this machine."""
    found = []
    with restored_kernels():
        for kind in KERNELS:
            with suppress(DependencyError):
                found.append(select_kernels(kind, device))
    return found


def default_variants(args: argparse.Namespace) -> list[str]:
    """Return the variants of the float model and of `args.kernels`; compiled ones if a compiler works."""
    if args.own_loop:
        return [EAGER, "own"]
    names = ["float", "float-channels_last", "float-compiled", "float-autocast-channels_last", AUTOCAST]
    if "plain" in args.kernels:
        names += ["plain", "plain-compiled", "plain-autocast-channels_last-compiled"]
    if "fused" in args.kernels:
        names.append("fused")
    if "integer" in args.kernels:
        kinds = ["integer" if each == "float32" else f"integer-{each}" for each in args.gradients]
        names += [kind + rest for kind in kinds for rest in ("", "-compiled")]
    if args.channels_last:
        eager = [name for name in names if parse_kind(name)[1:] == ("float32", False, False, False) and name != EAGER]
        names += [f"{name}-channels_last" for name in eager]
    compiles = can_compile(torch.device(args.device).type)
    return [name for name in names if compiles or not parse_kind(name).compiled]


def labels(args: argparse.Namespace) -> dict[str, tuple[str | None, str]]:
    """Return the rows to measure: label to method (None: float) and variant."""
    found: dict[str, tuple[str | None, str]] = {}
    for name in args.variants:
        for method in [None] if parse_kind(name).model == "float" else args.methods:
            found[f"{method} {name}" if method else name] = (method, name)
    return found


def measure(args: argparse.Namespace) -> list[Row]:
    """Return a row for each variant: time and saved activations, as ratios to the float steps."""
    built = {label: Variant(args, method, name) for label, (method, name) in labels(args).items()}
    for variant in built.values():
        variant.select()
        variant.step()
        variant.step()
    times: dict[str, list[float]] = {label: [] for label in built}
    for _ in range(args.repeats):
        for label, variant in built.items():
            variant.select()
            times[label].append(seconds(variant.step, args))
    float_bytes = built[EAGER].saved_bytes()
    rows = []
    for label, variant in built.items():
        row: Row = dict(variant=label, milliseconds=1000 * statistics.median(times[label]))
        for name, base in BASES.items():
            if base in times:
                pairs = zip(times[label], times[base], strict=True)
                row[f"to_{name}"] = statistics.median(a / b for a, b in pairs)
        rows.append({**row, "saved_activations": variant.saved_bytes() / float_bytes})
    return rows


def bounds(args: argparse.Namespace, rows: list[Row]) -> list[Row]:
    """Return the rows of the lower bounds, as ratios to the float steps in `rows`."""
    found = {"pass": pass_seconds(args, args.methods[0])}
    if any(parse_kind(name).model == "integer" for name in args.variants):
        found["bound"] = product_seconds(args, "float32")
        if "bf16" in args.gradients:
            found["bound-bf16"] = product_seconds(args, "bf16")
    steps = {row["variant"]: row["milliseconds"] for row in rows}
    bases = {name: steps[base] for name, base in BASES.items() if base in steps}
    return [
        dict(variant=label, milliseconds=1000 * s, **{f"to_{name}": 1000 * s / ms for name, ms in bases.items()})
        for label, s in found.items()
    ]


def add_peaks(args: argparse.Namespace, rows: list[Row]) -> None:
    """Add the peak memory of a step to the rows, each measured in a fresh process."""
    for row in rows:
        command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", row["variant"]]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        row["peak_mib"] = float(printed.split()[-1])
    base = next(row["peak_mib"] for row in rows if row["variant"] == EAGER)
    for row in rows:
        row["peak"] = row["peak_mib"] / base


def cells(row: Row) -> list[str]:
    """Return the texts of a row's cells; nothing for what was not measured."""
    digits = {"milliseconds": 1, "peak_mib": 0}
    name, *rest = HEADS
    return [row[name], *(f"{row[key]:.{digits.get(key, 2)}f}" if key in row else "" for key in rest)]


def show(rows: list[Row], markdown: bool) -> str:
    """Return the table of the rows, without columns that nothing was measured for."""
    used = [i for i, key in enumerate(HEADS) if any(key in row for row in rows)]
    lines = [[line[i] for i in used] for line in [list(HEADS.values()), *map(cells, rows)]]
    if markdown:
        head, *body = [f"| {' | '.join(line)} |" for line in lines]
        return "\n".join([head, "|---" * len(used) + "|", *body])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(text) for text in texts)


def read_arguments() -> argparse.Namespace:
    """Return the options, with the defaults that depend on others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet20")
    parser.add_argument("--methods", nargs="+", default=["LSQ"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--batch", type=int, help="batch size (default: resnet20 128, others 16)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, help="default: all that run here")
    parser.add_argument("--gradients", nargs="+", choices=GRADIENTS, default=["float32"], help="of integer kernels")
    parser.add_argument("--channels-last", action="store_true", help="also eager quantized variants in channels_last")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="variants by name, instead of the default ones")
    parser.add_argument("--own-loop", action="store_true", help="measure your own loop, without select_kernels")
    parser.add_argument(
        "--keep-memory", action="store_true", help="keep freed memory, as the runner does: no variant waits for pages"
    )
    parser.add_argument("--rss", action="store_true", help="also measure the peak memory of a step, in fresh processes")
    parser.add_argument("--peak-of", metavar="ROW", help="print the peak memory of one row in MiB, nothing else")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", type=Path, help="JSON file to write the rows to")
    args = parser.parse_args()
    args.batch = args.batch or MODELS[args.model][3]
    args.kernels = args.kernels or default_kernels(args.device)
    args.variants = list(dict.fromkeys([EAGER, *(args.variants or default_variants(args))]))
    for name in args.variants:
        try:
            parse_kind(name)
        except argparse.ArgumentTypeError as error:
            parser.error(f"--variants: {error}")
    if "own" in args.variants and not args.own_loop:
        parser.error("--variants: own needs --own-loop, where no other variant selects kernels.")
    return args


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure and print."""
    args = read_arguments()
    torch.set_num_threads(args.threads)
    if args.keep_memory:
        keep_freed_memory()
    if args.peak_of:
        print(peak_bytes(Variant(args, *labels(args)[args.peak_of])) / 2**20)
        return
    with torch._dynamo.config.patch(recompile_limit=8 + len(labels(args))):  # the models share their code
        rows = measure(args)
    if args.rss:
        add_peaks(args, rows)
    rows += bounds(args, rows)
    print(f"{args.model}, W{args.bits}A{args.bits}, batch {args.batch}, {args.threads} thread(s), {processor()}")
    print(show(rows, args.markdown))
    if args.json:
        args.json.write_text(json.dumps(dict(torch=torch.__version__, arguments=vars(args), rows=rows), default=str))


if __name__ == "__main__":
    main()
